"""Gathering rows: one launch for all tensors against the three gathers of PyTorch.

Hidden states alone; hidden states with what travels along (cosine and sine rows, positions); and
keys and values of all 28 layers. What a memcpy of as many bytes takes stands beside it.

    python bench/bench_gather.py --help
"""

from collections.abc import Iterator

import torch
from harness import Case, Way, main
from parity import exactly
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, gather_rows, random_select

SHARE = 0.25
LAYERS = 28


def index_select(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.index_select(0, index) for x in tensors]


def brackets(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x[index] for x in tensors]


def expanded_gather(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    rows = index.long()
    return [
        x.gather(0, rows.view(-1, *[1] * (x.ndim - 1)).expand(-1, *x.shape[1:])) for x in tensors
    ]


def copied(index: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """As many bytes, without an index: a floor, not a gather."""
    return [x[: len(index)].clone() for x in tensors]


WAYS = (
    Way("index_select", index_select, "eager"),
    Way("x[index]", brackets, "fair"),
    Way("gather", expanded_gather, "fair"),
    Way("memcpy of as many bytes", copied, "note"),
    Way("vtfast", gather_rows, "vtfast"),
)
COMPILED = Way("index_select, compiled", lambda compile: compile(index_select), "compiled")


def case(
    name: str, w: Workload, device: str, widths: list[tuple[int, ...]], positions: bool = False
) -> Case:
    """Rows of tensors of these widths, and of a column of positions."""
    dtype = dtype_for(device)
    cut, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)
    row = sum(torch.Size(width).numel() for width in widths) * dtype.itemsize + 8 * positions

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        index = random_select(cut, keep, seed=seed, stream=0)
        sets = [normal(seed, w.rows, *width, device=device, dtype=dtype) for width in widths]
        column = [torch.arange(w.rows, device=device)] if positions else []
        return (index, *sets, *column)

    return Case(
        name=name,
        shape=f"{w.rows} rows of {row} bytes -> {sum(keep)}",
        dtype=dtype,
        make=make,
        ways=[*WAYS, COMPILED] if positions and w.name != "llava b1" else WAYS,
        gate=lambda inputs: exactly(brackets(*inputs)),
        nbytes=(2 * row + 4) * sum(keep),
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(f"hidden, {w.name}", w, device, [(w.dim,)])
    for w in workloads(tiny, "llava b1", "llava b8", "qwen 4k"):
        beside = [(w.dim,), (w.head_size,), (w.head_size,)]
        yield case(f"with cos, sin, positions, {w.name}", w, device, beside, positions=True)
    for w in workloads(tiny, "qwen 16k"):
        rows = [(w.key_heads, w.head_size)] * 2 * LAYERS
        yield case(f"K and V of {LAYERS} layers, {w.name}", w, device, rows)


if __name__ == "__main__":
    main("gather", cases)
