"""Uniform: evenly spaced tokens of the picture's grid, a baseline that uses no features or scores.

Of a grid of t frames, h rows and w columns, k tokens are kept:

    over frames     the k tokens are shared as evenly as whole numbers allow; if k < t, k frames get
                    one token each
    in a frame      r = round(sqrt(k·h/w)) rows, so that steps down and across are about equal (at
                    least ceil(k/w), at most h and k rows), and the k tokens shared over them
    places          part i of m equal parts of a side of n is kept at its middle, floor((2i+1)n/2m);
                    share i of k tokens over m is floor((i+1)k/m) - floor(ik/m)

Of an image of several grids (tiles, or an overview before the details) each gets the share of its
tokens. A segment that is not whole any more (an earlier stage dropped some of it), or whose grids
are unknown, counts as one row in reading order. Exactly k tokens for every k, by host arithmetic
alone. The definition is our own.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import isqrt, prod

import torch
from torch import Tensor

from vtfast.methods.context import SelectionContext


def uniform(ctx: SelectionContext) -> Tensor:
    """Row numbers of evenly spaced tokens, int64 ascending."""
    rows: list[int] = []
    of_segments = ctx.segments.offsets[:-1], ctx.segments.lengths, ctx.keep, ctx.parts
    for offset, length, keep, parts in zip(*of_segments, strict=True):
        seen = 0
        for grid in parts if sum(map(prod, parts)) == length else [(1, 1, length)]:
            before, seen = seen, seen + prod(grid)
            share = keep * seen // max(1, length) - keep * before // max(1, length)
            rows.extend(offset + before + place for place in evenly(grid, share))
    device = ctx.segments.device
    # From pinned memory: a copy from pageable memory would wait for the GPU.
    pinned = device.type == "cuda"
    index = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return index.to(device, non_blocking=True)


@lru_cache(maxsize=256)
def evenly(grid: Sequence[int], keep: int) -> tuple[int, ...]:
    """Numbers of `keep` evenly spaced places of a (frames, rows, columns) grid, in reading order.

    >>> evenly((1, 4, 4), 4)
    (5, 7, 13, 15)
    """
    frames, height, width = grid
    return tuple(
        (frame * height + row) * width + column
        for frame, of_frame in _spread(frames, min(frames, keep), keep)
        for row, of_row in _spread(height, _rows(height, width, of_frame), of_frame)
        for column, _ in _spread(width, of_row, of_row)
    )


def _rows(height: int, width: int, keep: int) -> int:
    even = (isqrt(4 * keep * height // width) + 1) // 2  # round(sqrt(keep·h/w)), halves up
    return min(max(even, -(-keep // width)), height, keep)


def _spread(side: int, parts: int, keep: int) -> Iterator[tuple[int, int]]:
    """The middle of each of `parts` equal parts of a side, and its share of `keep`."""
    for i in range(parts):
        yield (2 * i + 1) * side // (2 * parts), (i + 1) * keep // parts - i * keep // parts
