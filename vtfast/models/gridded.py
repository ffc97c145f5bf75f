"""Families whose pictures and clips come as patches with a grid, and may be of any size.

Their text model has M-RoPE: positions along time, height and width. Pruning counts merged tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vtfast.models.base import TINY_TEXT, Family
from vtfast.models.generic import Kind, LazyImageHash, Measured, runs
from vtfast.models.vision_scores import Attended, copies_of
from vtfast.runtime.call import Pictures
from vtfast.runtime.host_read import to_device

TINY_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


class Gridded(Family):
    """How such a family reads its pictures and clips.

    config: class of the configuration. text, tower: what a tiny one has beside `TINY_TEXT` and
    `TINY_TOWER`.
    """

    default_horizon = 0.75  # layer 21 of 28 of Qwen2.5-VL, arXiv 2512.07580
    kinds: Mapping[str, Kind] = {
        "image": Kind("pixel_values", "image_token_id", ("image_grid_thw",)),
        "video": Kind("pixel_values_videos", "video_token_id", ("video_grid_thw",)),
    }
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

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured:
        side = multimodal.config.vision_config.spatial_merge_size
        unknown = ((int(kind == "image"), 0, 0),)

        def measure(placed: np.ndarray, *grids: np.ndarray) -> Pictures:
            for grid in grids:
                if sizes is None or len(sizes) == len(grid):
                    parts = [((t, h // side, w // side),) for t, h, w in grid.tolist()]
                    return Pictures((grid.prod(1) // side**2).tolist(), parts)
            known = runs(placed)[1].tolist() if sizes is None else sizes
            return Pictures(known, [unknown] * len(known))

        grid = call.get(self.kinds[kind].more[0])
        return measure, () if grid is None else (grid,)

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        blocks, tower = multimodal.visual.blocks, multimodal.config.vision_config
        # In Qwen2.5-VL's other blocks patches see a window of their frame.
        last = (getattr(tower, "fullatt_block_indexes", None) or [-1])[-1]
        return copies_of(blocks[last].attn), False

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        tower = multimodal.config.vision_config
        side, frames = tower.spatial_merge_size, []
        for (steps, rows, columns), *_ in pictures.parts:
            frames += [rows * columns * side**2] * steps
        merged = attended.received(frames).view(-1, side**2).mean(1)
        window = getattr(tower, "window_size", 0) // side // tower.patch_size
        if not window:
            return merged
        order = np.argsort(_window_order([parts[0] for parts in pictures.parts], window))
        return merged[to_device(order, merged.device)]

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        pixels, (grid,) = self.kinds[kind].pixels, self.kinds[kind].more
        return LazyImageHash(call[pixels], call.get(grid))


def _window_order(grids: Sequence[tuple[int, ...]], window: int) -> np.ndarray:
    """Numbers of visual tokens in the order in which Qwen2.5-VL's tower has them: frame by frame,
    in squares of `window` tokens, each in reading order."""
    order, done = [], 0
    for grid in grids:
        frame, row, column = np.indices(grid).reshape(3, -1)
        keys = column % window, row % window, column // window, row // window, frame
        order.append(np.lexsort(keys) + done)
        done += len(frame)
    return np.concatenate(order)
