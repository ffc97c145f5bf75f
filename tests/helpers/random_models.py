"""The whole models that are timed, with random weights made on the device, and their prompts.

LLaVA-1.5-7B and Qwen2.5-VL-7B have the shapes of their checkpoints.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from native_run import text_inputs
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen2_5_VLConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtfast.cli._prefill_race import MidSize

PATCH = 14  # pixels a side, in both families


def llava_1_5_7b(vision: dict | None = None, **text: object) -> LlavaConfig:
    """The shapes of `llava-hf/llava-1.5-7b-hf`: transformers' defaults, but for the vocabulary."""
    shapes = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, **text}
    config = LlavaConfig(text_config=shapes, image_token_index=32000, image_seq_length=576)
    config.vision_config.update(vision or {})
    return config


def qwen2_5_vl_7b(vision: dict | None = None, **text: object) -> Qwen2_5_VLConfig:
    """The shapes of `Qwen/Qwen2.5-VL-7B-Instruct`."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    shapes = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
              "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
              "max_position_embeddings": 128000, "rope_parameters": rope, **text}  # fmt: skip
    tower = {"hidden_size": 1280, "out_hidden_size": 3584, **(vision or {})}
    return Qwen2_5_VLConfig(text_config=shapes, vision_config=tower)


_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8,
         "num_attention_heads": 4}  # fmt: skip


def tiny_llava() -> LlavaConfig:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 6 * PATCH, "projection_dim": 32}  # fmt: skip
    return llava_1_5_7b(vision, **_TINY, num_key_value_heads=4)


def tiny_qwen() -> Qwen2_5_VLConfig:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
              "out_hidden_size": 64, "fullatt_block_indexes": [1]}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return qwen2_5_vl_7b(vision, **_TINY, num_key_value_heads=2, rope_parameters=rope)


@dataclass(frozen=True)
class Subject:
    """A model to time.

    config: makes its configuration; None: the mid-size model of the demo.
    tokens: visual tokens of a picture that is usual for it.
    shrink: by how much pictures are smaller than they are called, in dry runs.
    """

    name: str
    config: Callable | None
    tokens: int
    shrink: int = 1

    def size(self, tokens: int) -> int:
        return max(4, tokens // self.shrink)

    def build(self, device: str, dtype: torch.dtype) -> Any:
        """The model in eval mode, made on the device; equal on every run."""
        if self.config is None:
            return MidSize().build().to(device, dtype)
        torch.manual_seed(0)
        make = AutoModelForImageTextToText.from_config
        with torch.device(device):
            return make(self.config(), dtype=dtype, attn_implementation="sdpa").eval()


LLAVA, QWEN = (
    Subject("llava-1.5-7b", llava_1_5_7b, 576),
    Subject("qwen2.5-vl-7b", qwen2_5_vl_7b, 1024),
)
MID = Subject("llava 16 x 1024", None, 576)
SUBJECTS = {"cuda": [LLAVA, QWEN], "cpu": [MID]}
TINY = [Subject(LLAVA.name, tiny_llava, 576, 16), Subject(QWEN.name, tiny_qwen, 1024, 64)]


def inputs_of(model: Any, texts: Sequence[int], tokens: int) -> dict[str, Tensor]:
    """Samples of so many text tokens around a picture each, padded on the left.

    They have the positions of the full prompt, so that no variant spends time on these.
    """
    config, like, generator = model.config, model.lm_head.weight, torch.Generator().manual_seed(1)
    height = next(h for h in range(isqrt(tokens), 0, -1) if tokens % h == 0)
    picture, width = [config.image_token_id] * tokens, tokens // height
    qwen, first_word = hasattr(config, "video_token_id"), config.image_token_id + 1
    if qwen:
        picture = [config.vision_start_token_id, *picture, config.vision_end_token_id]
        first_word = config.video_token_id + 1
    picture, draw, samples = torch.tensor(picture), torch.Generator().manual_seed(0), []
    for length in texts:
        words = torch.randint(first_word, config.text_config.vocab_size, (length,), generator=draw)
        samples.append(torch.cat((words[:8], picture, words[8:])))
    pad = {"batch_first": True, "padding_side": "left"}
    mask = pad_sequence([torch.ones_like(x) for x in samples], **pad)
    inputs = {"input_ids": pad_sequence(samples, **pad), "attention_mask": mask}
    if qwen:
        vision, merge = config.vision_config, config.vision_config.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * PATCH**2
        pixels = torch.randn(tokens * merge**2, values, generator=generator)
        inputs["pixel_values"] = pixels.to(like.dtype).repeat(len(texts), 1)
        inputs["image_grid_thw"] = torch.tensor([[1, merge * height, merge * width]] * len(texts))
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    else:
        pixels = torch.randn(1, 3, PATCH * height, PATCH * width, generator=generator)
        inputs["pixel_values"] = pixels.to(like.dtype).repeat(len(texts), 1, 1, 1)
    inputs = {name: x.to(like.device) for name, x in inputs.items()}
    return with_positions(model, inputs, random_features(model, len(texts), tokens))


def random_features(model: Any, batch: int, tokens: int) -> Any:
    """Features of pictures as the tower would return them; it takes only some sizes, and time."""
    like = model.get_input_embeddings().weight
    generator = torch.Generator(like.device).manual_seed(2)
    one = torch.randn(tokens, like.shape[1], generator=generator, device=like.device)
    return BaseModelOutputWithPooling(pooler_output=[one.to(like.dtype)] * batch)


@torch.no_grad()
def encode(model: Any, inputs: dict[str, Tensor]) -> Any:
    """The features of the pictures, from the vision tower and what follows it."""
    names = ("pixel_values", "image_grid_thw")
    return model.model.get_image_features(**{n: inputs[n] for n in names if n in inputs})


@contextmanager
def encoded_once(model: Any, inputs: dict[str, Tensor], features: Any = None) -> Iterator[None]:
    """Within the block the pictures are encoded already, as `features` if these are given."""
    features = encode(model, inputs) if features is None else features
    model.model.get_image_features = lambda *args, **kwargs: features
    try:
        yield
    finally:
        del model.model.get_image_features


def with_positions(model: Any, inputs: dict, features: Any = None) -> dict[str, Tensor]:
    if not hasattr(model.config, "video_token_id"):
        return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    with encoded_once(model, inputs, features):
        return {**inputs, "position_ids": text_inputs(model, inputs)["position_ids"]}
