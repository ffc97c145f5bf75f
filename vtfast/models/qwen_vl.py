"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and clips of any size, M-RoPE.

Qwen3-VL has DeepStack: features of its tower's layers are added to visual tokens behind the first
decoder layers. It writes the frames of a clip apart, each behind a timestamp.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from vtfast.models.base import (
    TINY_TEXT,
    TINY_TOWER,
    Family,
    LazyImageHash,
    encoded_by_tower,
    has_merged_features,
    noted,
    placeholders,
)
from vtfast.runtime.call import Source

# kind -> (pixels, grid, placeholder id in the config)
_KINDS = {
    "image": ("pixel_values", "image_grid_thw", "image_token_id"),
    "video": ("pixel_values_videos", "video_grid_thw", "video_token_id"),
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


class QwenVL(Family):
    """How Qwen's models read their pictures and clips: pruning counts merged tokens.

    config: class of the configuration. text, tower: what a tiny one has beside `TINY_TEXT` and
    `TINY_TOWER`.
    """

    default_horizon = 0.75  # layer 21 of 28 of Qwen2.5-VL, arXiv 2512.07580
    tower = "visual"
    inputs = ("input_ids", *(name for kind in _KINDS.values() for name in kind[:2]))
    around_picture = (92, 93)
    position_axes = (3,)  # time, height, width

    def __init__(self, config: Any, text: dict[str, Any], tower: dict[str, Any]) -> None:
        self._config, self._text, self._tower = config, text, tower

    def added(self, config: Any) -> int:
        return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))

    def tiny(self, config: Any) -> PreTrainedConfig:
        tiny: PreTrainedConfig = self._config(
            text_config={**TINY_TEXT, "rope_parameters": _ROPE, **self._text},
            vision_config={"depth": 2, "num_heads": 2, "patch_size": 4, **self._tower},
            image_token_id=90,
            video_token_id=91,
            vision_start_token_id=self.around_picture[0],
            vision_end_token_id=self.around_picture[1],
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
        for kind, (pixels_name, grid_name, token_name) in _KINDS.items():
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
            for kind, (*_, token_name) in _KINDS.items():
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


_OUT = {"out_hidden_size": TINY_TEXT["hidden_size"]}
_OF_QWEN3 = (
    {"head_dim": 8, "rope_parameters": {"mrope_interleaved": True, **_ROPE}},
    {**TINY_TOWER, **_OUT, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
)
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "Qwen2VLForConditionalGeneration": QwenVL(
        Qwen2VLConfig,
        {},
        {"embed_dim": 16, "mlp_ratio": 2, "hidden_size": TINY_TEXT["hidden_size"]},
    ),
    "Qwen2_5_VLForConditionalGeneration": QwenVL(
        Qwen2_5_VLConfig,
        {},
        {**TINY_TOWER, **_OUT, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "Qwen3VLForConditionalGeneration": QwenVL(Qwen3VLConfig, *_OF_QWEN3),
    "Qwen3VLMoeForConditionalGeneration": QwenVL(
        Qwen3VLMoeConfig, {**_OF_QWEN3[0], **_EXPERTS}, _OF_QWEN3[1]
    ),
}
