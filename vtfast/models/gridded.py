"""Families whose pictures and clips come as patches with a grid, and may be of any size.

Their text model has M-RoPE: positions along time, height and width. Pruning counts merged tokens.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from vtfast.models.base import (
    TINY_TEXT,
    Family,
    LazyImageHash,
    encoded_by_tower,
    has_merged_features,
    noted,
    placeholders,
)
from vtfast.runtime.call import Source

TINY_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


class Gridded(Family):
    """How such a family reads its pictures and clips.

    kinds: of images and of clips the arguments of pixels and grids, and the placeholder's name.
    config: class of the configuration. text, tower: what a tiny one has beside `TINY_TEXT` and
    `TINY_TOWER`.
    """

    default_horizon = 0.75  # layer 21 of 28 of Qwen2.5-VL, arXiv 2512.07580
    tower = "visual"
    kinds: Mapping[str, tuple[str, str, str]] = {
        "image": ("pixel_values", "image_grid_thw", "image_token_id"),
        "video": ("pixel_values_videos", "video_grid_thw", "video_token_id"),
    }
    inputs = ("input_ids", *(name for kind in kinds.values() for name in kind[:2]))
    around = ("vision_start_token_id", "vision_end_token_id")
    around_picture = (92, 93)
    position_axes = (3,)  # time, height, width

    def __init__(self, config: Any, text: dict[str, Any], tower: dict[str, Any]) -> None:
        self._config, self._text, self._tower = config, text, tower

    def added(self, config: Any) -> int:
        return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))

    def tiny(self, config: Any) -> PreTrainedConfig:
        tiny: PreTrainedConfig = self._config(
            text_config={**TINY_TEXT, "rope_parameters": TINY_ROPE, **self._text},
            vision_config={"depth": 2, "num_heads": 2, "patch_size": 4, **self._tower},
            image_token_id=90,
            video_token_id=91,
            **dict(zip(self.around, self.around_picture, strict=True)),
        )
        return tiny

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        grid = torch.tensor([[1, 4, 6], [1, 6, 4], [1, 4, 4]])[:count]
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, generator=generator)
        return [6, 6, 4][:count], {"pixel_values": pixels, "image_grid_thw": grid}

    def sources(self, multimodal: Any, kwargs: Mapping[str, Any]) -> list[Source]:
        found = []
        side = multimodal.config.vision_config.spatial_merge_size
        for kind, (pixels_name, grid_name, token_name) in self.kinds.items():
            encoded = encoded_by_tower(kwargs, kind)
            pixels: Any = kwargs.get(pixels_name)
            grid: Any = kwargs.get(grid_name)
            sizes: list[int] | Tensor
            if encoded is not None:
                sizes = [len(f) for f in encoded.pooler_output]
                image_hash = noted(encoded, "vtfast_image_hash")
                seen_grid = noted(encoded, "vtfast_grid")
                grid = grid if seen_grid is None else seen_grid()
            elif pixels is not None:
                sizes = grid.prod(1) // side**2
                image_hash = LazyImageHash(
                    pixels.type(multimodal.visual.dtype), grid
                )  # as the tower does
            else:
                continue
            merged: Any = [int(kind == "image"), 0, 0] * len(sizes)
            if grid is not None:
                merged = torch.cat((grid[:, :1], grid[:, 1:] // side), 1)
            where = placeholders(multimodal, kwargs, getattr(multimodal.config, token_name))
            found.append(Source(where, sizes, merged, image_hash))
        if not found and has_merged_features(kwargs):
            for kind, (*_, token_name) in self.kinds.items():
                if kind == "image" or token_name != self.kinds["image"][-1]:
                    where = placeholders(multimodal, kwargs, getattr(multimodal.config, token_name))
                    found.append(Source(where, None, [int(kind == "image"), 0, 0]))
        return found

    def note(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, hashed: bool
    ) -> None:
        pixels = args[0] if args else kwargs["hidden_states"]
        grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        if not isinstance(out, tuple):
            out.vtfast_grid = lambda: grid
            if hashed:
                out.vtfast_image_hash = LazyImageHash(pixels, grid)
