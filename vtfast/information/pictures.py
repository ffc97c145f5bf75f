"""Where the pictures of a batch stand in its sequences, and their division into units to score."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.runtime.call import read_call

# The paper's grid and window: at 24 x 24 tokens and above, a unit is 2 x 2 of them.
PAPER_GRID, PAPER_WINDOW = 24, (2, 2)

Grid = tuple[int, int, int]  # steps in time (1 for an image), rows, columns
Window = tuple[int, int]  # rows, columns of tokens in a unit


@dataclass(frozen=True, eq=False)
class Picture:
    """An image or a clip in a batch, or one of several grids of tokens that it has.

    Attributes:
        sample: which of the batch.
        columns: int64 [tokens], places of its visual tokens in that sequence, ascending, in raster
            order; tokens that are no patch (a class token) are left out.
        grid: of its tokens.
        number: which picture of the sample, from 0. `part`: which grid of that picture, where it
            has several (a tile, or an overview and what it overviews).
    """

    sample: int
    columns: np.ndarray
    grid: Grid
    number: int = 0
    part: int = 0

    def units(self, window: Window | None) -> tuple[list[np.ndarray], Grid]:
        """Divide the picture into units; columns of each, in raster order, and the grid of units.

        window: tokens of a unit, rows and columns; smaller at the edges of a grid it does not
            divide. None: 2 x 2 where both sides of the grid are at least 24, else one token.
        """
        steps, rows, columns = self.grid
        if window is None:
            window = PAPER_WINDOW if min(rows, columns) >= PAPER_GRID else (1, 1)
        height, width = window
        raster = self.columns.reshape(self.grid)
        found = [
            raster[t, r : r + height, c : c + width].flatten()
            for t in range(steps)
            for r in range(0, rows, height)
            for c in range(0, columns, width)
        ]
        return found, (steps, -(-rows // height), -(-columns // width))


def check_window(window: Any) -> Window | None:
    """A window as (rows, columns); an int is a square one. Raises InputError."""
    sides = (window, window) if isinstance(window, int) else window
    if sides is None:
        return None
    good = isinstance(sides, tuple | list) and len(sides) == 2
    if not good or not all(type(side) is int and side >= 1 for side in sides):
        raise InputError(f"window={window!r}: pass tokens along a side, or (rows, columns), >= 1")
    return sides[0], sides[1]


def find_pictures(
    family: Any, multimodal: Any, inputs: Mapping[str, Any]
) -> tuple[list[Picture], np.ndarray]:
    """Find the pictures in the inputs of the multimodal model, by sample and place in it.

    Returns them, and where all visual tokens are, also those that are no patch: bool [B, S].
    """
    found, (samples, length) = [], inputs["input_ids"].shape
    visual = np.zeros((samples, length), dtype=bool)
    sources = family.sources(multimodal, inputs)
    call = read_call({}, sources, None, family.position_axes, None) if sources else None
    kinds = zip(call.placeholders, call.pictures, strict=True) if call else ()
    for kind, (placed, pictures) in enumerate(kinds):
        visual |= placed
        flat, made = np.flatnonzero(placed), sum(pictures.sizes)
        if made != len(flat):
            raise InputError(
                f"the pictures make {made} visual tokens and input_ids has {len(flat)} "
                "placeholders; encode prompt and pictures with the model's own processor"
            )
        start = 0
        for grid, which in [(g, i) for i, grids in enumerate(pictures.parts) for g in grids]:
            tokens = flat[start : (start := start + prod(grid))]
            if len(tokens) > 1:  # else it is no patch, but a class token or a new line
                steps, rows, columns = grid
                sample = int(tokens[0]) // length
                one = Picture(sample, tokens % length, (steps, rows, columns))
                found.append((one, (kind, which)))
    found.sort(key=lambda pair: (pair[0].sample, pair[0].columns[0]))
    return _numbered(found), visual


def _numbered(found: list[tuple[Picture, tuple[int, int]]]) -> list[Picture]:
    """Number the pictures of a sample, and the grids of a picture, which share a key."""
    numbered = []
    for sample in sorted({picture.sample for picture, _ in found}):
        parts: Counter[tuple[int, int]] = Counter()
        for picture, key in found:
            if picture.sample == sample:
                parts[key] += 1
                number = list(parts).index(key)
                numbered.append(replace(picture, number=number, part=parts[key] - 1))
    return numbered
