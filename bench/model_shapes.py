"""The whole models that are timed, with random weights, and the prompts they are given.

LLaVA-1.5-7B and Qwen2.5-VL-7B have the shapes that their checkpoints' configurations give, and are
made on the device itself: nothing is downloaded and nothing is read from a disk. What the weights
are does not decide how long a prefill takes. For a CPU there is the model that `vtfast demo` times.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt
from types import SimpleNamespace
from typing import Any

import torch
from models import prompts, with_positions
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
)

from vtfast.cli._prefill_race import MidSize

PATCH = 14  # pixels a side, in both families


def llava_1_5_7b() -> LlavaConfig:
    """The shapes of `llava-hf/llava-1.5-7b-hf`."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=PATCH,
        projection_dim=768,
        vocab_size=32000,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def qwen2_5_vl_7b() -> Qwen2_5_VLConfig:
    """The shapes of `Qwen/Qwen2.5-VL-7B-Instruct`."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [16, 24, 24],
        },
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


def _tiny_llava() -> LlavaConfig:
    config = llava_1_5_7b()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 6 * PATCH, "projection_dim": 32}  # fmt: skip
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    config.vision_config.update(vision)
    config.text_config.update(text)
    config.text_config.head_dim = 16
    return config


def _tiny_qwen() -> Qwen2_5_VLConfig:
    text = {"vocab_size": 152064, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                "mrope_section": [2, 3, 3]}}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
              "out_hidden_size": 64, "fullatt_block_indexes": [1]}  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


def build(config: PreTrainedConfig, device: str, dtype: torch.dtype) -> Any:
    """The model in eval mode, made on the device; equal on every run."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    return model.eval()


@dataclass(frozen=True)
class Subject:
    """A model to time.

    tokens: visual tokens of a picture that is usual for it.
    shrink: by how much pictures and batches are smaller than they are called, in dry runs.
    """

    name: str
    build: Callable[[str, torch.dtype], Any]
    tokens: int
    shrink: int = 1

    def size(self, tokens: int) -> int:
        return max(4, tokens // self.shrink)


def _of(name: str, config: Callable[[], PreTrainedConfig], tokens: int) -> Subject:
    return Subject(name, lambda device, dtype: build(config(), device, dtype), tokens)


LLAVA = _of("llava-1.5-7b", llava_1_5_7b, 576)
QWEN = _of("qwen2.5-vl-7b", qwen2_5_vl_7b, 1024)
MID = Subject("llava 16 x 1024", lambda device, dtype: MidSize().build().to(device, dtype), 576)
SUBJECTS = {"cuda": [LLAVA, QWEN], "cpu": [MID]}
TINY = [
    replace(_of(LLAVA.name, _tiny_llava, LLAVA.tokens), shrink=16),
    replace(_of(QWEN.name, _tiny_qwen, QWEN.tokens), shrink=64),
]


def texts(batch: int) -> tuple[int, ...]:
    """Text tokens of every sample: 64, and in a batch from 16 to 112, so that rows differ."""
    if batch == 1:
        return (64,)
    return tuple(16 + 96 * i // (batch - 1) for i in range(batch))


def inputs_of(model: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    """Prompts with a picture of so many tokens each, padded on the left, with their positions."""
    config, weight = model.config, model.lm_head.weight
    height = next(h for h in range(isqrt(tokens), 0, -1) if tokens % h == 0)
    width = tokens // height
    generator = torch.Generator().manual_seed(1)
    image = torch.full((tokens,), config.image_token_id)
    vocabulary = config.text_config.vocab_size
    if not hasattr(config, "video_token_id"):
        inputs = prompts(texts(batch), image, config.image_token_id, vocabulary)
        pixels = torch.randn(1, 3, PATCH * height, PATCH * width, generator=generator)
        inputs["pixel_values"] = pixels.expand(batch, -1, -1, -1).contiguous()
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return _moved(inputs, weight)
    ends = torch.tensor([[config.vision_start_token_id], [config.vision_end_token_id]])
    picture = torch.cat((ends[0], image, ends[1]))
    inputs = prompts(texts(batch), picture, config.video_token_id, vocabulary)
    merge, vision = config.vision_config.spatial_merge_size, config.vision_config
    row = vision.in_channels * vision.temporal_patch_size * PATCH**2
    pixels = torch.randn(tokens * merge**2, row, generator=generator)
    inputs["pixel_values"] = pixels.repeat(batch, 1)
    inputs["image_grid_thw"] = torch.tensor([[1, merge * height, merge * width]] * batch)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    return with_positions(model, _moved(inputs, weight), made_up(model, batch, tokens))


def _moved(inputs: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    return {
        name: x.to(like.device, like.dtype if x.is_floating_point() else None)
        for name, x in inputs.items()
    }


def made_up(model: Any, batch: int, tokens: int) -> Any:
    """Features of pictures that no tower has seen: it takes only some sizes, and its own time."""
    like = model.get_input_embeddings().weight
    shape = (tokens, like.shape[1])
    generator = torch.Generator(like.device).manual_seed(2)
    one = torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
    return SimpleNamespace(pooler_output=[one] * batch)
