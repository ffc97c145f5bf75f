"""Real vLLM engines on bundled checkpoints, and the answers of `vtfast.patch` to their requests."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import vtfast
from vtfast import Prune, toy
from vtfast.toy import qwen
from vtfast.toy.scene import SQUARE, Scene

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
FAMILIES = ("llava", "qwen", "qwen3", "qwen2")
NEW_TOKENS = 4
COMPARED: list[int] = []  # answers of one comparison that were equal
_CLOSE = 1e-4  # of log-probabilities in fp32
_CHECKPOINTS = Path(toy.__file__).parent / "checkpoints"


class Request(NamedTuple):
    prompt: str
    pictures: Sequence[Image.Image]


class Answer(NamedTuple):
    tokens: list[int]
    log_probabilities: list[float]
    prompt: int = 0  # tokens


def checkpoint(name: str, root: Path) -> str:
    """A folder with a bundled checkpoint that vLLM loads; "qwen2": a random Qwen2-VL."""
    folder = root / name
    if not folder.exists():
        shutil.copytree(_CHECKPOINTS / ("qwen" if name == "qwen2" else name), folder)
        if name == "qwen2":
            load(name)[0].save_pretrained(folder)
            edit(folder / "preprocessor_config.json", processor_class="Qwen2VLProcessor")
            edit(folder / "tokenizer_config.json", processor_class="Qwen2VLProcessor")
        if name == "llava":
            name_as_before(folder)
    return str(folder)


def name_as_before(folder: Path) -> None:
    """Call a LLaVA's weights what older releases of transformers did: vLLM knows no other names."""
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@lru_cache
def load(name: str) -> tuple[Any, Any]:
    """The model of a checkpoint as transformers runs it, and its processor."""
    if name != "qwen2":
        return toy.load(name)
    _, processor = toy.load("qwen")
    config = json.loads((_CHECKPOINTS / "qwen" / "config.json").read_text())
    tower = {"depth": 2, "embed_dim": 96, "num_heads": 3, "mlp_ratio": 2, "hidden_size": 128}
    tower |= {"patch_size": 6, "spatial_merge_size": 2, "temporal_patch_size": 2}
    text = {**config["text_config"], "model_type": "qwen2_vl_text", "initializer_range": 0.2}
    tokens = {key: value for key, value in config.items() if key.endswith("_token_id")}
    torch.manual_seed(0)
    made = Qwen2VLConfig(text_config=text, vision_config=tower, **tokens)
    return Qwen2VLForConditionalGeneration(made).eval(), processor


@lru_cache
def requests(name: str) -> list[Request]:
    """Questions about one picture of several sizes and about two, which touch or do not; several
    about the same one; and one without."""
    mark = "<image>" if name == "llava" else "<vision_start><image><vision_end>"
    sizes = [SQUARE] if name == "llava" else qwen.SIZES
    found = []
    for task in toy.TASKS:
        pictures, questions, _ = toy.scenes(4, 11, task, sizes)
        for picture, question in zip(pictures, questions, strict=True):
            found.append(Request(f"USER: {mark}\n{question} ASSISTANT:", [picture]))
    for i in range(4):
        one = Scene.from_seed(100 + i, sizes[i % len(sizes)])
        other = Scene.from_seed(200 + i, sizes[-1 - i % len(sizes)])
        question, _ = one.question(toy.TASKS[i])
        between = "" if i < 2 else "\n"
        pictures = [one.picture(), other.picture() if i % 2 else one.picture()]
        found.append(Request(f"USER: {mark}{between}{mark}\n{question} ASSISTANT:", pictures))
    same = Scene.from_seed(7, sizes[0])
    for task in toy.TASKS[:3]:
        question, _ = same.question(task)
        found.append(Request(f"USER: {mark}\n{question} ASSISTANT:", [same.picture()]))
    return [*found, Request("USER: read the code . ASSISTANT:", [])]


@lru_cache
def of_patch(
    name: str,
    method: str,
    keep: float | int,
    seed: int = 0,
    positions: str = "keep",
    options: tuple[tuple[str, object], ...] = (),
) -> list[Answer]:
    """Greedy answers of the model that is patched with one stage before the language model."""
    model, processor = load(name)
    plan = [Prune(0, method, keep, **dict(options))]
    with vtfast.patch(model, plan, seed=seed, positions=positions):
        return [_answer(model, processor, *request) for request in requests(name)]


def _answer(model: Any, processor: Any, prompt: str, pictures: Sequence[Image.Image]) -> Answer:
    images = {"images": list(pictures)} if pictures else {}
    inputs = processor(text=[prompt], return_tensors="pt", **images)
    how = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **how)
    tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    logs = [torch.log_softmax(logits[0].float(), -1) for logits in made.logits]
    pairs = zip(logs, tokens, strict=True)
    return Answer(tokens, [float(log[token]) for log, token in pairs])


@contextmanager
def engine(folder: str, settings: object = None, **more: Any) -> Iterator[Any]:
    """A vLLM engine in this process, shut down at the end."""
    from vllm import LLM

    how = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "limit_mm_per_prompt": {"image": 4, "video": 0},
        "max_num_batched_tokens": 512,
        "max_num_seqs": 16,
        "block_size": 32,
        "seed": 0,
        "additional_config": {} if settings is None else {"vtfast": settings},
    }
    if Path(folder).name == "llava":
        how["limit_mm_per_prompt"] = {"image": 4}
    made = LLM(model=folder, **(how | more))
    try:
        yield made
    finally:
        made.llm_engine.engine_core.shutdown()


def ask(
    made: Any,
    asked: Sequence[Request],
    keeps: Sequence[object] | None = None,
    **more: Any,
) -> list[Answer]:
    """Greedy answers of an engine, to all requests at once. keeps: of each; None: the engine's."""
    from vllm import SamplingParams

    prompts = []
    for number, (prompt, pictures) in enumerate(asked):
        one: dict[str, Any] = {"prompt": prompt}
        if pictures:
            one["multi_modal_data"] = {"image": list(pictures)}
            if keeps is not None and keeps[number] is not None:
                one["mm_processor_kwargs"] = {"vtfast_keep": keeps[number]}
        prompts.append(one)
    how = {"temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": 1} | more
    made = made.generate(prompts, SamplingParams(**how), use_tqdm=False)
    return [_of_output(one) for one in made]


def _of_output(made: Any) -> Answer:
    out = made.outputs[0]
    pairs = zip(out.logprobs, out.token_ids, strict=True)
    logs = [chosen[token].logprob for chosen, token in pairs]
    return Answer(list(out.token_ids), logs, len(made.prompt_token_ids))


def check_equal(got: Sequence[Answer], expected: Sequence[Answer]) -> int:
    """Same tokens and close log-probabilities, up to the end of each expected answer; how many."""
    for number, (own, other) in enumerate(zip(got, expected, strict=True)):
        n = len(other.tokens)
        assert own.tokens[:n] == other.tokens, number
        pairs = zip(own.log_probabilities, other.log_probabilities, strict=False)
        assert max(abs(a - b) for a, b in pairs) < _CLOSE, number
    COMPARED.append(len(got))
    return len(got)


def preemptions(made: Any) -> int:
    """How often the scheduler has taken the memory of a request away."""
    return sum(one.value for one in made.get_metrics() if one.name == "vllm:num_preemptions")


def configure(folder: str, settings: object, **more: Any) -> Any:
    """vLLM's configuration with these settings, without an engine."""
    from vllm.engine.arg_utils import EngineArgs

    given = {"additional_config": {} if settings is None else {"vtfast": settings}}
    return EngineArgs(model=folder, max_model_len=512, **(given | more)).create_engine_config()
