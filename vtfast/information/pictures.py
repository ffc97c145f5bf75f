"""Where the pictures of a batch stand in its sequences, and their division into units to score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.inputs.grids import find_grids

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
    found = find_grids(family, multimodal, inputs)
    pictures = []
    for one in found.grids:
        steps, rows, columns = one.columns.shape
        where = one.columns.reshape(-1), (steps, rows, columns)
        pictures.append(Picture(one.sample, *where, one.number, one.part))
    return pictures, found.visual
