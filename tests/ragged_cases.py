"""Ragged batches to try the ops on, shared by their tests."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from vtfast.kernels.ragged import Ragged

# Every selection meets its oracle on this many ragged batches, the same ones in every run.
THOROUGH = settings(max_examples=2_000, derandomize=True, deadline=None, database=None)

CUTS = [
    pytest.param([], [], id="no segments"),
    pytest.param([0], [0], id="one empty segment"),
    pytest.param([1], [1], id="one row"),
    pytest.param([1], [0], id="one row, none kept"),
    pytest.param([7], [7], id="all kept"),
    pytest.param([5, 5, 5], [2, 2, 2], id="equal lengths, equal keep"),
    pytest.param([5, 5, 5], [0, 5, 2], id="equal lengths, other keep"),
    pytest.param([3, 0, 63, 1], [2, 0, 31, 1], id="odd lengths, an empty segment"),
    pytest.param([577, 576], [58, 288], id="sizes of a picture"),
]


@st.composite
def cuts(draw: st.DrawFn, max_length: int = 9) -> tuple[list[int], list[int]]:
    """Lengths and keep counts of 0 to 4 segments; every third batch has equal lengths."""
    number = draw(st.integers(0, 4))
    if draw(st.integers(0, 2)) == 0:
        lengths = [draw(st.integers(0, max_length))] * number
    else:
        lengths = [draw(st.integers(0, max_length)) for _ in range(number)]
    return lengths, [draw(st.integers(0, n)) for n in lengths]


def cut(lengths: Sequence[int], device: str = "cpu") -> Ragged:
    return Ragged.from_lengths(lengths, device)


def check_selection(index: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]) -> None:
    """Assert what every selection promises: exact counts, distinct, ascending, in range, int32."""
    assert index.dtype == torch.int32
    assert index.is_contiguous()
    starts = accumulate(lengths, initial=0)
    picks = index.split(list(keep)) if len(keep) else []
    assert len(index) == sum(keep)
    for start, n, rows in zip(starts, lengths, picks, strict=False):
        rows = rows.tolist()
        assert rows == sorted(set(rows))
        assert all(start <= row < start + n for row in rows)


def refusal(id: str, error: type[Exception], message: str, call: Callable[[], object]):
    """One bad call: what must be raised, and the start of what it must say."""
    return pytest.param(error, message, call, id=id)
