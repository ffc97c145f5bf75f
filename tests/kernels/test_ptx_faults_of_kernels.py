"""What the executor of PTX must notice in kernels written in Triton, named at their source line."""

from pathlib import Path

import ptx_driver
import ptx_machine
import pytest
import torch
import triton
import triton.language as tl
from ptx_machine import PtxFault

from vtfast.kernels import gather
from vtfast.ops import Ragged, ragged_attention


@triton.jit
def _through_memory(x, out, N: tl.constexpr, BARRIER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x + i, i)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + i, tl.load(x + (N - 1 - i)))


@triton.jit
def _without_mask(x, out, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0))  # the store has none


@triton.jit
def _one_element_twice(out, N: tl.constexpr):
    i = tl.program_id(0) * (N - 1) + tl.arange(0, N)
    tl.store(out + i, tl.program_id(0))


def line_of(text: str) -> str:
    """Where this text stands in this file, as messages name it."""
    lines = Path(__file__).read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if text in line)
    return f"{Path(__file__).name}:{number}:"


def test_a_load_of_what_another_warp_stored_needs_a_barrier():
    x, out = (torch.zeros(256, dtype=torch.int32) for _ in range(2))
    _through_memory[(1,)](x, out, 256, True)
    assert torch.equal(out, torch.arange(256, dtype=torch.int32).flip(0))
    with pytest.raises(PtxFault, match=line_of("tl.load(x + (N - 1")):
        _through_memory[(1,)](x, out, 256, False)


def test_a_store_without_mask_leaves_its_tensor():
    x, out = torch.randn(1000), torch.zeros(1024)
    _without_mask[(4,)](x, out, 1000, 256)
    with pytest.raises(PtxFault, match=line_of("the store has none")):
        _without_mask[(4,)](x, out[:1000], 1000, 256)


def test_two_programs_may_not_write_one_element():
    out = torch.zeros(1024, dtype=torch.int32)
    with pytest.raises(PtxFault, match=line_of("tl.store(out + i, tl.program_id(0))")):
        _one_element_twice[(4,)](out, 256)


def test_rows_between_the_rows_of_a_view_are_outside():
    wide = torch.zeros(4, 300)
    with pytest.raises(PtxFault, match="outside of every tensor"):
        _without_mask[(4,)](wide[:, :256], torch.zeros(1024), 1024, 256)


def test_an_index_one_beyond_is_outside():
    x, index = torch.randn(64, 64), torch.arange(64)
    gather.gather_rows(index, x, impl="triton")
    index[3] = 64
    with pytest.raises(PtxFault, match=r"_gather_rows_kernel, gather\.py:\d+:.*outside of every"):
        gather.gather_rows(index, x, impl="triton")


@pytest.fixture
def kept(monkeypatch):
    """The launches made from here on: program, grid, values, bytes of shared memory."""
    launches, run_on_cpu = [], ptx_driver.run

    def keep(*launch, **how):
        launches.append(launch)
        return run_on_cpu(*launch, **how)

    monkeypatch.setattr(ptx_driver, "run", keep)
    return launches


def test_an_aligned_binary_on_an_odd_address_is_unaligned(kept):
    """What a launch handle kept for too long would do."""
    index, storage = torch.arange(8), torch.randn(64 * 64 + 1).bfloat16()
    gather.gather_rows(index, storage[:-1].view(64, 64), impl="triton")
    program, grid, values, shared = kept[0]
    moved = [(k, storage[1:].view(64, 64) if k == "*bf16" else v) for k, v in values[:2]]
    with pytest.raises(PtxFault, match=r"gather\.py:\d+:.*unaligned global memory"):
        ptx_machine.run(program, grid, [*moved, *values[2:]], shared)


def test_less_shared_memory_than_a_kernel_needs_is_noticed(kept):
    segments, q = Ragged.from_lengths([70], "cpu"), torch.randn(70, 2, 64).bfloat16()
    ragged_attention(q, q, q, segments, segments, impl="triton")
    program, grid, values, shared = kept[0]
    with pytest.raises(PtxFault, match=r"_attention_kernel, .*\.py:\d+:.*shared memory beyond"):
        ptx_machine.run(program, grid, values, shared - 16)


@triton.jit
def _in_order_of_arrival(out):
    before = tl.atomic_min(out, -1 - tl.program_id(0), sem="relaxed")
    tl.store(out + 1 + tl.program_id(0), before)


def test_another_order_of_programs_may_not_change_the_result():
    with pytest.raises(PtxFault, match="another order of programs gives other results"):
        _in_order_of_arrival[(5,)](torch.zeros(8, dtype=torch.int32))
