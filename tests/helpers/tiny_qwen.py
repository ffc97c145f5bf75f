"""Tiny random models of Qwen's families and GLM-4V: pictures and clips of any size, M-RoPE."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from tiny_parts import (
    IMAGE,
    TEXT,
    VIDEO,
    VISION_END,
    VISION_START,
    Family,
    Picture,
    Sample,
    finish,
    noise,
    pad_left,
    patches,
)
from transformers import PreTrainedModel

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "depth": 2}
_QWEN3_TEXT = {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_interleaved": True}}
_QWEN3_TOWER = {
    **_TOWER,
    "depth": 3,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _build(
    prefix: str,
    text: dict[str, Any],
    tower: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    *,
    seed: int = 1,
    around: str = "vision",
    last_mark: int = VISION_END,
    **more_text: object,
) -> PreTrainedModel:
    """A model of 6 layers, 64 wide, of the classes `<prefix>Config` and so on."""
    sizes = {"num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**TEXT, "rope_parameters": _ROPE, **text, **more_text},
        vision_config={**sizes, **tower},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **{f"{around}_start_token_id": VISION_START, f"{around}_end_token_id": VISION_END},
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    return finish(model, dtype, attention, seed=seed, last_mark=last_mark)


# Window attention in the tower.
build_qwen = partial(
    _build,
    "Qwen2_5_VL",
    {},
    {**_TOWER, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2},
)


def _batch(
    samples: list[Sample], dtype: torch.dtype = torch.float32, *, timed: bool, marked: bool
) -> dict:
    inputs = pad_left(samples)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if marked:  # clips have the placeholders of pictures, between two marks
        within = (ids == CLIP_START).int().cumsum(1) - (ids == CLIP_END).int().cumsum(1)
        inputs["mm_token_type_ids"] += ((ids == IMAGE) & (within > 0)).int()
    for video, pixels, grid in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        pictures = [p for s in samples for p in s.pictures if p.video == video]
        if pictures:
            found = [noise(p.seed, patches(p), 3 * 2 * 14 * 14) for p in pictures]
            inputs[pixels] = torch.cat(found).to(dtype)
            inputs[grid] = torch.tensor([p.grid for p in pictures])
    if timed and "video_grid_thw" in inputs:
        inputs["second_per_grid_ts"] = torch.ones(len(inputs["video_grid_thw"]))
    return inputs


def _placeholders(picture: Picture) -> list[int]:
    token = VIDEO if picture.video else IMAGE
    return [VISION_START, *[token] * (patches(picture) // 4), VISION_END]


def _frame_by_frame(picture: Picture) -> list[int]:
    """Each frame of a clip by itself, behind a token that tells its time."""
    if not picture.video:
        return _placeholders(picture)
    t, h, w = picture.grid
    frame = _placeholders(Picture((1, h, w), video=True))
    return [token for number in range(t) for token in (10 + number, *frame)]


CLIP_START, CLIP_END = 94, 95


def _between_marks(picture: Picture) -> list[int]:
    """GLM: the frames of a clip have the placeholders of pictures, each before its time."""
    if not picture.video:
        return _placeholders(picture)
    t, h, w = picture.grid
    frame = _placeholders(Picture((1, h, w)))
    frames = [token for number in range(t) for token in (*frame, 10 + number)]
    return [CLIP_START, *frames, CLIP_END]


def _family(
    name: str,
    build: Callable[..., PreTrainedModel],
    placeholders: Callable,
    *,
    timed: bool = False,
    mixes: bool = True,
    layouts: tuple[str, ...] = ("padded", "packed"),
) -> Family:
    return Family(
        name,
        build,
        placeholders,
        batch=partial(_batch, timed=timed, marked=not mixes),
        any_size=True,
        layouts=layouts,
        mixes=mixes,
        standard={
            "single": [[4, Picture((1, 8, 12), seed=1), 7]],
            "batch": [
                [9],
                [3, Picture((1, 12, 8), seed=2), 5],
                [2, Picture((1, 6, 12), seed=3), 1, Picture((1, 12, 12), seed=4), 6],
            ],
            "video": [
                [3, Picture((3, 6, 8), seed=5, video=True), 5],
                [
                    2,
                    *[Picture((1, 8, 8), seed=6), 2] * mixes,
                    Picture((2, 8, 6), seed=7, video=True),
                    4,
                ],
            ],
        },
    )


_LINEAR, _FULL = "linear_attention", "full_attention"
_QWEN35_TEXT = {
    "head_dim": 16,
    "layer_types": [_LINEAR, _FULL, _FULL, _LINEAR, _LINEAR, _FULL],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {**_ROPE, "mrope_interleaved": True, "mrope_section": [2, 1, 1],
                        "partial_rotary_factor": 0.5},
}  # fmt: skip
_GLM_ROPE = {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
_QWEN2_TOWER = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
_QWEN35_TOWER = {**_QWEN3_TOWER, "deepstack_visual_indexes": []}
_SHARED = {**_EXPERTS, "shared_expert_intermediate_size": 32}
_BUILD = {
    "qwen2": partial(_build, "Qwen2VL", {}, _QWEN2_TOWER),
    "qwen3": partial(_build, "Qwen3VL", _QWEN3_TEXT, _QWEN3_TOWER, seed=3),
    "qwen3-moe": partial(_build, "Qwen3VLMoe", {**_QWEN3_TEXT, **_EXPERTS}, _QWEN3_TOWER, seed=6),
    "qwen3.5": partial(_build, "Qwen3_5", _QWEN35_TEXT, _QWEN35_TOWER, seed=2),
    "qwen3.5-moe": partial(
        _build, "Qwen3_5Moe", {**_QWEN35_TEXT, **_SHARED}, _QWEN35_TOWER, seed=3
    ),
    **{
        name: partial(
            _build,
            prefix,
            {"rope_parameters": _GLM_ROPE},
            {**_TOWER, "image_size": 56},
            around="image",
            last_mark=CLIP_END,
            seed=3,
        )
        for name, prefix in (("glm4v", "Glm4v"), ("glm46v", "Glm46V"))
    },
}
GRIDDED = {
    "qwen": _family("qwen", build_qwen, _placeholders, timed=True),
    "qwen2": _family("qwen2", _BUILD["qwen2"], _placeholders),
    "qwen3": _family("qwen3", _BUILD["qwen3"], _frame_by_frame),
    "qwen3-moe": _family("qwen3-moe", _BUILD["qwen3-moe"], _frame_by_frame),
    "qwen3.5": _family("qwen3.5", _BUILD["qwen3.5"], _frame_by_frame, layouts=("padded",)),
    "qwen3.5-moe": _family(
        "qwen3.5-moe", _BUILD["qwen3.5-moe"], _frame_by_frame, layouts=("padded",)
    ),
    "glm4v": _family("glm4v", _BUILD["glm4v"], _between_marks, mixes=False),
    "glm46v": _family("glm46v", _BUILD["glm46v"], _between_marks, mixes=False),
}
