"""Tiny random models of every family, and batches for them: what the model tests run on.

`FAMILIES` has those that the environment variable VTFAST_TEST_FAMILIES names, else LLaVA and
Qwen2.5-VL; the others can be looked up in it all the same.
"""

import os

import torch
from tiny_parts import (
    IMAGE,
    TEXT,
    VIDEO,
    Family,
    Picture,
    Sample,
    finish,
    noise,
    pad_left,
)
from tiny_qwen import GRIDDED
from tiny_tiles import TILED
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

LLAVA_TOKENS = 36  # 48 pixels in patches of 8


def visual_columns(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Column numbers of the visual tokens of every sample, ascending."""
    visual = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    return [row.nonzero()[:, 0] for row in visual]


def image_columns(family: Family, samples: list[Sample], inputs: dict) -> list[list[torch.Tensor]]:
    """Column numbers of the visual tokens of every picture of every sample."""
    columns = visual_columns(inputs)
    return [
        list(row.split([family.tokens_of(p) for p in sample.pictures]))
        for row, sample in zip(columns, samples, strict=True)
    ]


def _llava_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = pad_left(samples)
    pixels = [noise(p.seed, 3, 48, 48) for s in samples for p in s.pictures]
    if pixels:
        inputs["pixel_values"] = torch.stack(pixels).to(dtype)
    return inputs


def build_llava(
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    *,
    vision_config: object = None,
    text_config: object = None,
) -> PreTrainedModel:
    """A LLaVA of 6 layers, 64 wide, with a CLIP tower of 36 tokens per image."""
    config = LlavaConfig(
        vision_config=vision_config
        or CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=48,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=text_config or LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=LLAVA_TOKENS,
    )
    return finish(LlavaForConditionalGeneration(config), dtype, attention)


class Chosen(dict[str, Family]):
    """The families to test; what is looked up by name may be any."""

    def __missing__(self, name: str) -> Family:
        return _ALL[name]


_LLAVA = Family(
    "llava",
    build_llava,
    placeholders=lambda picture: [IMAGE] * LLAVA_TOKENS,
    batch=_llava_batch,
    standard={
        "single": [[4, Picture(seed=1), 7]],
        "batch": [
            [9],
            [3, Picture(seed=2), 5],
            [2, Picture(seed=3), Picture(seed=4), 6],  # no text between the two
        ],
    },
)
_ALL = {"llava": _LLAVA, **GRIDDED, **TILED}
_CHOSEN = os.environ.get("VTFAST_TEST_FAMILIES", "llava qwen").split()
FAMILIES = Chosen({name: _ALL[name] for name in _CHOSEN})
# Where layers run without their model: those with features between layers and with recurrent ones.
ODD_LAYERS = [name for name in ("qwen3", "qwen3.5") if name not in FAMILIES]
