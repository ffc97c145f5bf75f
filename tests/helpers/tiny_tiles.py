"""Tiny random models of the families that cut pictures into tiles, and of Mistral3.

The grid of a `Picture` is of patches of 4 pixels here, so one of 12 x 12 patches is as large as a
tile of 48 pixels.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import chain
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
)
from transformers import PreTrainedModel

SIDE = 48  # pixels along a tile
TILE = 36  # visual tokens of one
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def _build(
    prefix: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    more: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    *,
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    **more_text: object,
) -> PreTrainedModel:
    """A model of 6 layers, 64 wide, of the classes `<prefix>Config` and so on."""
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**TEXT, **text, **more_text},
        vision_config={**_TOWER, **vision, **(tower or {})},
        image_token_id=IMAGE,
        **more,
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    return finish(model, dtype, attention, seed=seed)


def _tiles(picture: Picture) -> int:
    """Tiles of a picture: itself where it is square, else two halves and itself made small."""
    _, high, wide = picture.grid
    return 1 if high == wide else 3


def _pixels(picture: Picture, tiles: int) -> torch.Tensor:
    return noise(picture.seed, tiles, 3, SIDE, SIDE)


def _filled_up(tiles: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """[n, most tiles, 3, SIDE, SIDE]: pictures of fewer tiles have zeros behind them."""
    return torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True).to(dtype)


def _pictures(samples: list[Sample], *, video: bool = False) -> list[Picture]:
    return [p for s in samples for p in s.pictures if p.video == video]


# -- InternVL --------------------------------------------------------------------------------------


def _internvl_placeholders(picture: Picture) -> list[int]:
    return [VISION_START, *[IMAGE] * (TILE * _tiles(picture)), VISION_END]


def _internvl_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = pad_left(samples)
    if pictures := _pictures(samples):
        found = [_pixels(p, _tiles(p)) for p in pictures]
        inputs["pixel_values"] = torch.cat(found).to(dtype)
    return inputs


# -- Aria ------------------------------------------------------------------------------------------


def _aria_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    """As InternVL's; a mask says that each tile ends in rows of padding."""
    inputs = _internvl_batch(samples, dtype)
    if "pixel_values" in inputs:
        inputs["pixel_values"][..., -8:, :] = 0
        inputs["pixel_mask"] = torch.ones(len(inputs["pixel_values"]), SIDE, SIDE, dtype=torch.bool)
        inputs["pixel_mask"][:, -8:] = False
    return inputs


# -- SmolVLM and Idefics3 --------------------------------------------------------------------------


def _smol_placeholders(picture: Picture, behind: tuple[int, ...] = ()) -> list[int]:
    """A token tells the place of a tile, another that the last is the whole picture."""
    places = [*range(10, 9 + _tiles(picture)), VISION_END]
    tiles = [[VISION_START, place, *behind, *[IMAGE] * TILE] for place in places]
    return [*chain(*tiles), VISION_START]


def _smol_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = pad_left(samples)
    if _pictures(samples):
        tiles = [[_pixels(p, _tiles(p)) for p in s.pictures] for s in samples]
        none = torch.zeros(0, 3, SIDE, SIDE)
        inputs["pixel_values"] = _filled_up([torch.cat([none, *t]) for t in tiles], dtype)
    return inputs


# -- LLaVA-NeXT and LLaVA-OneVision ----------------------------------------------------------------


def _pixel_sides(picture: Picture) -> tuple[int, int]:
    _, high, wide = picture.grid
    return 4 * high, 4 * wide


@cache
def _next_size(sides: tuple[int, int]) -> tuple[int, int]:
    """Tiles and visual tokens of a picture, as the unpatched model itself makes them."""
    model = _ONE["llava-next"]()
    pixels, sizes = torch.zeros(1, 5, 3, SIDE, SIDE), torch.tensor([sides])
    with torch.no_grad():
        seen = model.model.get_image_features(pixels, sizes, return_dict=True)
    return len(seen.last_hidden_state), len(seen.pooler_output[0])


def _next_placeholders(picture: Picture) -> list[int]:
    if picture.video:
        return [VIDEO] * (9 * picture.grid[0] + 1)
    return [IMAGE] * _next_size(_pixel_sides(picture))[1]


def _next_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = pad_left(samples)
    if pictures := _pictures(samples):
        sides = [_pixel_sides(p) for p in pictures]
        found = [_pixels(p, _next_size(s)[0]) for p, s in zip(pictures, sides, strict=True)]
        inputs["pixel_values"] = _filled_up(found, dtype)
        inputs["image_sizes"] = torch.tensor(sides)
    if clips := _pictures(samples, video=True):
        found = [noise(p.seed, p.grid[0], 3, SIDE, SIDE) for p in clips]
        inputs["pixel_values_videos"] = torch.stack(found).to(dtype)
    return inputs


# -- Mistral3 --------------------------------------------------------------------------------------


def _mistral_placeholders(picture: Picture) -> list[int]:
    """A token ends each row, another the last."""
    _, high, wide = picture.grid
    row = [*[IMAGE] * (wide // 2), VISION_START]
    return [*(row * (high // 2))[:-1], VISION_END]


def _mistral_batch(samples: list[Sample], dtype: torch.dtype = torch.float32) -> dict:
    inputs = pad_left(samples)
    if pictures := _pictures(samples):
        sides = [_pixel_sides(p) for p in pictures]
        most = [max(side) for side in zip(*sides, strict=True)]
        pixels = torch.zeros(len(pictures), 3, *most)
        for row, picture, (high, wide) in zip(pixels, pictures, sides, strict=True):
            row[:, :high, :wide] = noise(picture.seed, 3, high, wide)
        inputs["pixel_values"], inputs["image_sizes"] = pixels.to(dtype), torch.tensor(sides)
    return inputs


_PINPOINTS = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]]}
_LLAMA = {"model_type": "llama"}
_SQUARE = {"image_size": SIDE, "patch_size": 8}
_SMOL = (_LLAMA, {"image_size": SIDE, "patch_size": 4}, {"scale_factor": 2})
_ONE = {
    "internvl": partial(
        _build,
        "InternVL",
        {"model_type": "qwen3", "head_dim": 16},
        {"image_size": [SIDE, SIDE], "patch_size": [4, 4]},
        {},
    ),
    "aria": partial(
        _build,
        "Aria",
        {"model_type": "aria_text", "moe_num_experts": 4},
        {"model_type": "idefics3_vision", "image_size": SIDE, "patch_size": 4},
        {"projector_patch_to_query_dict": {144: TILE, 49: TILE}},
    ),
    "smolvlm": partial(_build, "SmolVLM", *_SMOL, seed=2),
    "idefics3": partial(_build, "Idefics3", *_SMOL, seed=2),
    "llava-next": partial(
        _build,
        "LlavaNext",
        _LLAMA,
        {"model_type": "clip_vision_model", "projection_dim": 32, **_SQUARE},
        _PINPOINTS,
        seed=5,
    ),
    "llava-onevision": partial(
        _build,
        "LlavaOnevision",
        {"model_type": "qwen2"},
        {"model_type": "siglip_vision_model", **_SQUARE},
        {
            **_PINPOINTS,
            "video_token_id": VIDEO,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        seed=6,
    ),
    "mistral3": partial(
        _build,
        "Mistral3",
        {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
        {"model_type": "pixtral", "image_size": SIDE, "patch_size": 4, "head_dim": 8},
        {"vision_feature_layer": -1, "tie_word_embeddings": False},
        seed=3,
    ),
}


def _family(name: str, placeholders: Callable, batch: Callable) -> Family:
    """Where clips are known, they have two frames."""
    return Family(
        name,
        _ONE[name],
        placeholders,
        batch,
        standard={
            "single": [[4, Picture((1, 8, 12), seed=1), 7]],
            "batch": [
                [9],
                [3, Picture((1, 12, 12), seed=2), 5],
                [2, Picture((1, 12, 4), seed=3), Picture(seed=4), 6],
            ],
            "video": [
                [3, Picture((2, 12, 12), seed=5, video=True), 5],
                [2, Picture((1, 8, 12), seed=6), 2, Picture((2, 12, 12), seed=7, video=True), 4],
            ],
        },
    )


TILED = {
    "internvl": _family("internvl", _internvl_placeholders, _internvl_batch),
    "aria": _family("aria", _internvl_placeholders, _aria_batch),
    "smolvlm": _family("smolvlm", _smol_placeholders, _smol_batch),
    # Its places are several tokens, which end alike.
    "idefics3": _family("idefics3", partial(_smol_placeholders, behind=(7,)), _smol_batch),
    "llava-next": _family("llava-next", _next_placeholders, _next_batch),
    "llava-onevision": _family("llava-onevision", _next_placeholders, _next_batch),
    "mistral3": _family("mistral3", _mistral_placeholders, _mistral_batch),
}
