"""How the visual tokens of a prompt divide into pictures, and each picture's into rows and columns.

Processors say it in different ways: Qwen's and GLM's give the grids of patches. Others give pixels,
of the picture, or of tiles that the model sees one by one (InternVL, Idefics 3, SmolVLM).
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

_GRIDS = ("image_grid_thw", "video_grid_thw")


class Grid(NamedTuple):
    """The visual tokens of a picture, a clip, or a picture in tiles.

    steps: of time, or tiles; 1 for a whole picture. rows, columns: of each. skip: visual tokens
    before these that are no patch (a class token).
    """

    steps: int
    rows: int
    columns: int
    skip: int = 0

    @property
    def tokens(self) -> int:
        """All visual tokens of the picture."""
        return self.skip + self.steps * self.rows * self.columns


def grids_of_patches(inputs: Mapping[str, Any], tokens: int) -> list[Grid]:
    """The grids that a processor gives, pictures before clips; none if it gives none.

    inputs: what the processor made of a prompt. tokens: visual tokens in it.
    """
    found = [inputs[name] for name in _GRIDS if name in inputs]
    if not found:
        return []
    patches = torch.cat(found)  # int64 [pictures, 3]: time, height and width in patches
    side = isqrt(int(patches.prod(1).sum()) // tokens)  # patches along the side of a token
    return [Grid(int(t), int(h) // side, int(w) // side) for t, h, w in patches]


def grids_of_pixels(inputs: Mapping[str, Any], sizes: Sequence[int]) -> list[Grid]:
    """The grids of pictures of so many visual tokens, by the pixels that the processor made.

    Empty where a picture's tokens are no grid (LLaVA-NeXT and OneVision put those of the whole
    picture before those of its tiles, which they join and cut to the picture's shape), and where
    there is a clip.
    """
    pixels, sides = inputs.get("pixel_values"), inputs.get("image_sizes")
    if pixels is None or "pixel_values_videos" in inputs:
        return []
    if sides is not None and pixels.ndim == 5:  # [pictures, tiles, 3, height, width]
        return []
    if sides is not None:  # of pictures that are filled up to one size
        return [Grid(1, *_raster(n, *side)) for n, side in zip(sizes, sides.tolist(), strict=True)]
    tiles = pixels.shape[:-3].numel()
    each = sum(sizes) // tiles
    rows, columns = _raster(each, *pixels.shape[-2:])
    return [Grid(n // each, rows, columns, each - rows * columns) for n in sizes]


def as_seen(processor: Any, inputs: Mapping[str, Any], tile: int) -> Image.Image | None:
    """A picture or tile as it reaches the model, cropped if its processor crops.

    inputs: what the processor made of a prompt. tile: which of all tiles, or of all pictures where
        there are no tiles. None where the inputs have patches, of the whole picture.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim < 4:
        return None
    seen = pixels.flatten(0, -4)[tile]
    if "image_sizes" in inputs:  # what is behind them fills up
        high, wide = inputs["image_sizes"][tile].tolist()
        seen = seen[:, :high, :wide]
    how = processor.image_processor
    raster = seen.permute(1, 2, 0).float().numpy()
    if how.do_normalize:
        raster = raster * np.array(how.image_std) + np.array(how.image_mean)
    return Image.fromarray((raster.clip(0, 1) * 255).round().astype(np.uint8))


def _raster(tokens: int, high: int, wide: int) -> tuple[int, int]:
    """Rows and columns of square patches that fill a picture of these sides."""
    return isqrt(tokens * high // wide), isqrt(tokens * wide // high)
