"""Where the patches of pictures stand in their sequences: rows and columns of visual tokens."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from PIL import Image

from vtfast.errors import InputError
from vtfast.runtime.call import Parts, read_call


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of an image or a clip, or of one of several grids that an image has.

    Attributes:
        sample: which of the batch.
        number: which picture of the sample, from 0.
        part: which grid of the picture, from 0: a tile, or an overview and the details.
        columns: int64 [steps in time, rows, columns], places in the sample's row of `input_ids`.
            Tokens that are no patch (a class token, the end of a line) are left out.
    """

    sample: int
    number: int
    part: int
    columns: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """The pictures in a batch.

    Attributes:
        grids: in reading order.
        sizes: visual tokens of each picture, in reading order.
        visual: bool [B, S], where all visual tokens are, also those that are no patch.
    """

    grids: list[PatchGrid]
    sizes: list[int]
    visual: np.ndarray


def find_grids(family: Any, multimodal: Any, inputs: Mapping[str, Any]) -> Found:
    """Find the pictures in the inputs of the multimodal model.

    Raises InputError where placeholders and pictures do not match.
    """
    samples, length = inputs["input_ids"].shape
    pictures: list[tuple[np.ndarray, Parts]] = []
    visual = np.zeros((samples, length), dtype=bool)
    sources = family.sources(multimodal, inputs)
    call = read_call({}, sources, None, family.position_axes, None) if sources else None
    for placed, found in zip(call.placeholders, call.pictures, strict=True) if call else ():
        visual |= placed
        flat, made = np.flatnonzero(placed), sum(found.sizes)
        if made != len(flat):
            raise InputError(
                f"the pictures make {made} visual tokens and input_ids has {len(flat)} "
                "placeholders; encode prompt and pictures with the model's own processor"
            )
        own = np.split(flat, np.cumsum(found.sizes)[:-1]) if found.sizes else []
        pictures += zip(own, found.parts, strict=True)
    pictures.sort(key=lambda picture: int(picture[0][0]))
    grids, seen = [], Counter[int]()
    for tokens, parts in pictures:
        sample = int(tokens[0]) // length
        for part, raster in enumerate(_rasters(tokens % length, parts, family.line_ends)):
            grids.append(PatchGrid(sample, seen[sample], part, raster))
        seen[sample] += 1
    return Found(grids, [len(tokens) for tokens, _ in pictures], visual)


def _rasters(tokens: np.ndarray, parts: Parts, line_ends: bool) -> list[np.ndarray]:
    """The places of a picture's tokens, grid by grid, without those that are no patch."""
    ends = np.cumsum([prod(grid) for grid in parts])
    found: list[np.ndarray] = []
    for grid, own in zip(parts, np.split(tokens, ends[:-1]), strict=True):
        if len(own) > 1 or len(parts) == 1:
            raster = own.reshape(grid)
            found.append(raster[..., :-1] if line_ends and found else raster)
    return found


def as_seen(processor: Any, inputs: Mapping[str, Any], tile: int) -> Image.Image | None:
    """A picture or tile as it reaches the model, cropped if its processor crops.

    inputs: what the processor made of a prompt. tile: which of all tiles, or of all pictures where
        there are no tiles. None where the inputs have patches, of the whole picture, or tiles that
        the model joins.
    """
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim < 4 or (pixels.ndim == 5 and "image_sizes" in inputs):
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
