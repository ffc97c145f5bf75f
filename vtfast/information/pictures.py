"""Where the pictures of a batch stand in its rows, and how they are cut into units to be scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vtfast.errors import InputError

# The paper's grid and window: at 24 x 24 tokens and above, a unit is 2 x 2 of them.
PAPER_GRID, PAPER_WINDOW = 24, (2, 2)

Grid = tuple[int, int, int]  # steps in time (1 for an image), rows, columns
Window = tuple[int, int]  # rows, columns of tokens in a unit


@dataclass(frozen=True, eq=False)
class Picture:
    """An image or a clip in a batch.

    Attributes:
        sample: the row of the batch.
        columns: int64 [tokens], where its visual tokens stand in that row, ascending, in raster
            order; tokens that are no patch (a class token) are left out.
        grid: of its tokens.
    """

    sample: int
    columns: np.ndarray
    grid: Grid

    def units(self, window: Window | None) -> tuple[list[np.ndarray], Grid]:
        """Columns of each unit's tokens, units in raster order, and the grid of units.

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
    """The pictures of a call of the multimodal model, by sample and place in it, and where all
    visual tokens are, also those that are no patch: bool [B, S]."""
    found, (samples, length) = [], inputs["input_ids"].shape
    visual = np.zeros((samples, length), dtype=bool)
    for source in family.sources(multimodal, inputs):
        visual |= source.placeholder.cpu().numpy()
        flat = source.placeholder.flatten().nonzero()[:, 0].cpu().numpy()
        sizes = [int(size) for size in source.sizes]
        if sum(sizes) != len(flat):
            raise InputError(
                f"the pictures make {sum(sizes)} visual tokens and input_ids has {len(flat)} "
                "placeholders; encode prompt and pictures with the model's own processor"
            )
        places = np.split(flat, np.cumsum(sizes)[:-1]) if sizes else []
        grids = torch.as_tensor(source.grid).reshape(-1, 3).tolist()
        for rows, (steps, high, wide) in zip(places, grids, strict=True):
            columns = rows[len(rows) - steps * high * wide :] % length  # a class token comes first
            found.append(Picture(int(rows[0]) // length, columns, (steps, high, wide)))
    return sorted(found, key=lambda picture: (picture.sample, picture.columns[0])), visual
