"""Ragged batches to try the ops on, shared by their tests."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
import torch
from examples import examples
from hypothesis import strategies as st

from vtfast.kernels.ragged import Ragged

# Every selection is compared with its oracle on this many ragged batches.
THOROUGH = examples(700)

# Kernels are compared on fewer: the interpreter takes 30 to 50 ms for a batch.
KERNEL = examples(60)

BATCHES = [
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


# Around what a program of a selection kernel holds: lines of 32 rows, tiles of 1024 and 4096.
BLOCK_BATCHES = [
    pytest.param([n], [k], id=f"{k} of {n}")
    for n, k in [
        *((31, 8), (32, 8), (33, 8)),
        *((1023, 500), (1024, 1), (1024, 1024), (1025, 500)),
        *((4096, 2048), (4097, 4096), (16384, 1638)),
    ]
]


@st.composite
def batches(draw: st.DrawFn, max_length: int = 9) -> tuple[list[int], list[int]]:
    """Lengths and keep counts of 0 to 4 segments; every third batch has equal lengths."""
    number = draw(st.integers(0, 4))
    if draw(st.integers(0, 2)) == 0:
        lengths = [draw(st.integers(0, max_length))] * number
    else:
        lengths = [draw(st.integers(0, max_length)) for _ in range(number)]
    return lengths, [draw(st.integers(0, n)) for n in lengths]


def ragged(lengths: Sequence[int], device: str | None = None) -> Ragged:
    """The segments of these lengths, on the default device if none is given."""
    return Ragged.from_lengths(lengths, device or torch.get_default_device())


def fenced_rows(x: torch.Tensor, value: float = float("nan"), device: str = "cpu") -> torch.Tensor:
    """The same rows, with 64 rows of `value` before and after them in memory."""
    fence = x.new_full((64, *x.shape[1:]), value)
    return torch.cat([fence, x, fence]).to(device)[64:-64]


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
