"""Compiled kernels on the cases of `aot_cases.py`, with numbers in their tensors, and on others.

Executed as PTX on a CPU: `make test-ptx` runs the gate cases, `make ptx-full` those marked `full`.
Ragged batches, edges of blocks, views and indices are in the tests of the ops, which run so too.
"""

import inspect
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any
from unittest import mock

import aot_cases
import op_calls
import pytest
import torch
from aot_cases import HEADS
from devices import ARCH
from kernel_checks import check_op, exact_rows
from parity import TINY, exactly, nearly
from ptx_driver import settings
from repository import ROOT

from vtfast.kernels import _distances, _dot_products
from vtfast.kernels import ragged_attention as attention
from vtfast.kernels._checks import INDEX_DTYPES, KERNEL_DTYPES
from vtfast.kernels._tiles import MAX_HEAD
from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode

assert ARCH, "set VTFAST_TEST_DEVICE to sm_80 or sm_90"
pytestmark = pytest.mark.usefixtures("poisoned_memory")
full = pytest.mark.full

# What runs, at the same settings, in the cases of the op.
PARTS = (_distances.norms, _dot_products.dot_products)
CASES = [case for case in aot_cases.cases() if case.call.func not in PARTS]
NUMBERS = [
    pytest.param(i, marks=() if case.gate else full, id=f"{case.call.func.__name__}, {case.name}")
    for i, case in enumerate(CASES)
]
KERNELS = {
    name
    for file in (ROOT / "kernels").glob("*.py")
    for name in re.findall(r"^@triton\.jit[^)]*\)?\ndef (_\w+_kernel)\(", file.read_text(), re.M)
}
LONG = 4097  # rows for which the last launch of a selection takes its largest settings


def one(rows: int) -> Ragged:
    return Ragged.from_lengths([rows], "cpu")


def shorter(op: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
    """Cut a case that would take minutes down to what needs the same settings, and say which rows
    belong together; the op to call."""
    if op is _distances.distance_matrices:
        op, x, weights = diversity_select, given["x"], given["weights"]
        given.clear()
        given |= {"features": x[:100], "segments": one(100), "keep": [50], "weights": weights}
    elif op is diversity_select:
        rows = min(len(given["features"]), LONG)
        given |= {"features": given["features"][:rows, :16], "segments": one(rows), "keep": [9]}
    elif op in (dpp_select, coverage_select):
        rows, weights = min(len(given["features"]), LONG), list(given)[1]
        given |= {"features": given["features"][:rows], weights: given[weights][:rows]}
        given |= {"segments": one(rows), "keep": [20 if op is dpp_select else 4]}
    if given.get("weights") is not None:
        given["weights"] = given["weights"][: given["segments"].total]
        return op
    elif op is ragged_attention:
        cut = {name: x[:200] for name, x in given.items() if isinstance(x, torch.Tensor)}
        segments = one(len(cut["q"]))
        given |= cut | {"q_segments": segments, "k_segments": segments}
    elif op is ragged_decode:
        lengths, starts = torch.tensor([[301, 339], [0, 301]]).int()
        given |= {"lengths": lengths, "starts": starts}
    elif given.get("grid") is not None:
        given["grid"].copy_(torch.tensor([[1, 3, 8], [2, 4, 5]]))
    elif "gather" in given:
        given["keep"] = [99]
    return op


def fill(given: dict[str, Any]) -> None:
    """Random numbers in all tensors: floats, and rows where they are indices."""
    draw = torch.Generator().manual_seed(0)
    for name in given.keys() - {"lengths", "starts", "grid"}:
        for x in given[name] if isinstance(given[name], tuple | list) else [given[name]]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                x.normal_(generator=draw)
            elif isinstance(x, torch.Tensor):
                x.random_(64, generator=draw)
    if given.get("weights") is not None:
        given["weights"].abs_()
    for name in given.keys() & {"picks", "visual"}:  # rows that ascend
        torch.arange(3, 3 + len(given[name]), out=given[name])


@cache
def launched(number: int) -> set[str]:
    """Check a case; the kernels that ran in it."""
    call = CASES[number].call
    given = inspect.signature(call.func).bind(*call.args, **call.keywords).arguments
    given.pop("impl", None)
    op = shorter(call.func, given)
    fill(given)
    bound = inspect.signature(op).bind_partial()
    bound.arguments |= given
    # Three orders, but where many programs compute distances that other cases compare.
    long = op in (diversity_select, dpp_select, coverage_select) and len(given["features"]) > 1024
    wave = 128 if len(given.get("q", ())) == 64 else 0  # 64 rows are for the small tile
    with (
        mock.patch.multiple(settings, launches=[], orders=1 if long else 3),
        mock.patch.object(attention, "_WAVE", wave),
    ):
        check_op(op, *bound.args, **bound.kwargs)
        return {ran.program.name for ran in settings.launches}


@pytest.mark.parametrize("number", NUMBERS)
def test_a_case_gives_what_the_reference_and_fp64_give(number: int) -> None:
    assert launched(number) <= KERNELS


def test_every_kernel_is_launched_by_a_gate_case() -> None:
    gates = [i for i, case in enumerate(CASES) if case.gate]
    assert set().union(*map(launched, gates)) == KERNELS


# In `make test` each dtype and each head size is run once, on one GPU, beside the gate cases.
ONCE = [
    (torch.float32, HEADS[1]),
    (torch.float16, HEADS[2]),
    (torch.bfloat16, HEADS[3]),
]
PRODUCT = [
    pytest.param(*pair, marks=() if pair in ONCE and ARCH == "sm_90" else full)
    for pair in product(KERNEL_DTYPES, HEADS)
]


@pytest.mark.parametrize(("dtype", "heads"), PRODUCT)
def test_every_dtype_and_head_size(dtype: torch.dtype, heads: tuple[int, ...], monkeypatch) -> None:
    """Both tiles: lengths beyond a tile of 128 queries, and below one of 64."""
    number, key_number, size = heads
    draw, lengths = torch.Generator().manual_seed(0), [129, 0, 1, 63]
    segments, rows = Ragged.from_lengths(lengths, "cpu"), sum(lengths)
    q, k, v = (
        torch.randn(rows, n, size, generator=draw).to(dtype)
        for n in (number, key_number, key_number)
    )
    monkeypatch.setattr(attention, "_WAVE", 0)
    check_op(last_query_scores, q[: len(lengths)], k, segments, scale=size**-0.5)
    if size > MAX_HEAD[dtype.itemsize]:
        return
    some, more = (torch.randperm(rows, generator=draw).to(kind) for kind in INDEX_DTYPES)
    check_op(ragged_attention, q, k, v, segments, segments, k_index=some)
    check_op(ragged_attention, q[:63], k, v, one(63), one(rows), causal=False)
    starts = segments.cu_seqlens[:-1].tolist()
    check_op(ragged_decode, q[: len(lengths)], k, v, lengths, starts=starts, k_index=more)


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, one element further than an address that is a multiple of 16 bytes."""
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    assert moved.data_ptr() % 16 == x.element_size()
    return moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", op_calls.op_calls("cpu"))
def test_an_odd_address_follows_an_even_one(name: str, dtype: torch.dtype, monkeypatch) -> None:
    """Kernels compiled for addresses that are multiples of 16 bytes are kept for later launches."""
    monkeypatch.setattr(op_calls, "dtype_for", lambda device: dtype)
    monkeypatch.setattr(op_calls, "LENGTHS", (3, 0, 63, 1, 130))
    run, tensors = op_calls.op_calls("cpu", "triton")[name]
    plain, _ = op_calls.op_calls("cpu", "eager")[name]
    if name.startswith(("diversity", "dpp", "coverage")):
        tensors[0] = exact_rows(tensors[0])
    expected = plain(*tensors)
    check = exactly(expected)
    if name.startswith(("ragged", "last")):
        check = nearly(expected.double(), 4 * TINY[dtype])
    for x in (tensors, list(map(shifted, tensors))):
        assert not check(run(*x))
