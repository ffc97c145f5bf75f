"""The gate before every timing: does a way answer what the case asks? Empty text means yes.

Each check says where the first difference is. They share nothing with `kernels/`.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))
import oracles

__all__ = [
    "Check",
    "a_selection",
    "exactly",
    "farthest_each_time",
    "nearly",
    "oracles",
    "rows_of_sorted",
]

Check = Callable[[object], str]


def exactly(expected: object) -> Check:
    """The same tensors, bit for bit."""
    return lambda got: _first_difference(_tensors(got), _tensors(expected))


def _tensors(x: object) -> list[torch.Tensor]:
    return [x] if isinstance(x, torch.Tensor) else list(x)


def _first_difference(got: list[torch.Tensor], expected: list[torch.Tensor]) -> str:
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            return f"tensor {number} has shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        differing = (a != b.to(a.device)).nonzero()
        if len(differing):
            return f"tensor {number} differs first at {tuple(differing[0].tolist())}"
    return ""


def nearly(expected: torch.Tensor, allowed: float) -> Check:
    """Within `allowed` of fp64 values everywhere, NaN nowhere else than there."""

    def check(got: object) -> str:
        (got,) = _tensors(got)
        if got.shape != expected.shape:
            return f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        error = (got.double() - expected).abs()
        worst = error.max().item() if error.numel() else 0.0
        if worst <= allowed:  # false for NaN
            return ""
        return f"off by {worst:.3g} at worst, {allowed:.3g} is allowed"

    return check


def a_selection(lengths: Sequence[int], keep: Sequence[int]) -> Check:
    """Exactly `keep[s]` distinct rows of each segment, ascending: any such rows will do."""

    def check(got: object) -> str:
        (index,) = _tensors(got)
        if len(index) != sum(keep):
            return f"{len(index)} rows, expected {sum(keep)}"
        starts = accumulate(lengths, initial=0)
        parts = zip(starts, lengths, index.long().split(list(keep)), strict=False)
        for segment, (start, n, rows) in enumerate(parts):
            outside = (rows < start) | (rows >= start + n)
            if outside.any() or (rows.diff() <= 0).any():
                return f"segment {segment}: rows outside of it, repeated or out of order"
        return ""

    return check


def rows_of_sorted(
    scores: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]
) -> torch.Tensor:
    """The k largest per segment by a stable sort, rows ascending, int32: what top-k must give."""
    starts = accumulate(lengths, initial=0)
    picks = [scores.new_empty(0, dtype=torch.int64)]
    for start, n, k in zip(starts, lengths, keep, strict=False):
        order = scores[start : start + n].sort(descending=True, stable=True).indices[:k]
        picks.append(order.sort().values + start)
    return torch.cat(picks).int()


def farthest_each_time(
    features: torch.Tensor, lengths: Sequence[int], keep: Sequence[int], slack: float = 2e-5
) -> Check:
    """Picks in order are greedy max-min on fp64 cosine distances, each up to `slack`.

    Roundings of fp32 distances stay below half of the slack; those of bf16 ones do not.
    """

    def check(got: object) -> str:
        (order,) = _tensors(got)
        if len(order) != sum(keep):
            return f"{len(order)} picks, expected {sum(keep)}"
        starts = accumulate(lengths, initial=0)
        parts = zip(starts, lengths, order.long().split(list(keep)), strict=False)
        for segment, (start, n, picks) in enumerate(parts):
            if (
                (picks < start).any()
                or (picks >= start + n).any()
                or len(picks.unique()) < len(picks)
            ):
                return f"segment {segment}: rows outside of it or repeated"
            short = _shortfall(features[start : start + n], picks - start)
            if (worst := short.max().item()) > slack:
                step = int(short.argmax())
                return f"segment {segment}: pick {step} is {worst:.2g} nearer than another row"
        return ""

    return check


def _shortfall(features: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """By how much each pick's distance to the picks before it misses the largest there is."""
    x = torch.nn.functional.normalize(features.double(), dim=1)
    distance = 1.0 - x @ x.T
    nearest = distance.clone().fill_diagonal_(torch.inf).amin(0)
    limit = torch.full_like(nearest, torch.inf)
    short = []
    for pick in picks[:, None]:
        short.append(nearest.max() - nearest.index_select(0, pick))
        nearest = limit = torch.minimum(limit, distance.index_select(0, pick)[0])
    return torch.cat(short)
