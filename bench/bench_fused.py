"""Selecting and gathering in one launch, against two launches and against plain PyTorch.

Random picks and top-k with `gather=`, for what a prune stage moves: hidden states, cosine and sine
rows, positions. The question is where one launch beats two: beyond small batches it need not.

    python bench/bench_fused.py --help
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from bench_random import loop as randperm_loop
from bench_topk import by_topk, padded, without_ties
from harness import Case, Way, main
from parity import Check, a_selection, exactly, oracles, rows_of_sorted
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, gather_rows, random_select, topk_select

SHARE = 0.25
NAMES = ("llava b1", "llava b8", "llava b32", "qwen 1k", "qwen 4k", "qwen mix b8")
COMPILED = ("llava b8", "qwen 4k")


def tensors(w: Workload, seed: int, device: str) -> list[torch.Tensor]:
    """What travels along."""
    dtype = dtype_for(device)
    widths = (w.dim, w.head_size, w.head_size)
    rows = [normal(seed, w.rows, width, device=device, dtype=dtype) for width in widths]
    return [*rows, torch.arange(w.rows, device=device)]


def then(select: Callable[..., torch.Tensor], count: int, gather: Callable) -> Callable:
    """Select by the first `count` inputs, then gather from the others: index and rows, flat."""

    def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
        index = select(*inputs[:count])
        return [index, *gather(index, *inputs[count:])]

    return call


def plain_gather(index: torch.Tensor, *rows: torch.Tensor) -> list[torch.Tensor]:
    return [x.index_select(0, index) for x in rows]


def flat(answer: tuple[torch.Tensor, Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [answer[0], *answer[1]]


def case(name: str, w: Workload, device: str, count: int, make, ways: list[Way], gate) -> Case:
    row = (w.dim + 2 * w.head_size) * dtype_for(device).itemsize + 8
    kept = sum(w.keep(SHARE))
    return Case(
        name=f"{name}, {w.name}",
        shape=f"{w.rows} rows of {row} bytes -> {kept}",
        dtype=dtype_for(device),
        make=lambda seed: (*make(seed), *tensors(w, seed, device)),
        ways=ways,
        gate=gate,
        nbytes=kept * (2 * row + 4) + (4 * w.rows if count == 1 else 0),
    )


def random_case(w: Workload, device: str) -> Case:
    cut, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        names = torch.tensor([seed + 7]), torch.tensor([seed], dtype=torch.int32)
        return tuple(name.to(device) for name in names)

    def select(seed: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        return random_select(cut, keep, seed=seed, stream=stream)

    def fused(seed: torch.Tensor, stream: torch.Tensor, *rows: torch.Tensor) -> list[torch.Tensor]:
        return flat(random_select(cut, keep, seed=seed, stream=stream, gather=rows))

    def gate(inputs: tuple) -> Check:
        seed, stream = (name.item() for name in inputs[:2])
        names = range(len(w.lengths))
        index = torch.tensor(oracles.random_select(w.lengths, keep, seed, names, stream))
        return _all_of(index.int().to(device), inputs[2:])

    def any_rows(inputs: tuple) -> Check:
        selection = a_selection(w.lengths, keep)
        return lambda got: selection(got[0]) or _all_of(got[0], inputs[2:])(got)

    eager = then(randperm_loop(cut, keep), 2, plain_gather)
    ways = [
        Way("randperm per picture, index_select", eager, "eager", any_rows),
        Way("two launches of vtfast", then(select, 2, gather_rows), "fair"),
        Way("vtfast", fused, "vtfast"),
    ]
    return case("random", w, device, 2, make, ways, gate)


def topk_case(w: Workload, device: str) -> Case:
    cut, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)

    def select(scores: torch.Tensor) -> torch.Tensor:
        return topk_select(scores, cut, keep)

    def fused(scores: torch.Tensor, *rows: torch.Tensor) -> list[torch.Tensor]:
        return flat(topk_select(scores, cut, keep, gather=rows))

    def gate(inputs: tuple) -> Check:
        return _all_of(rows_of_sorted(inputs[0], w.lengths, keep), inputs[1:])

    plain = then(padded(cut, keep, by_topk), 1, plain_gather)
    name = "padded topk, sort, index_select"
    ways = [
        Way(name, plain, "eager"),
        Way("two launches of vtfast", then(select, 1, gather_rows), "fair"),
        Way("vtfast", fused, "vtfast"),
    ]
    if w.name in COMPILED:
        ways.append(Way(f"{name}, compiled", lambda compile: compile(plain), "compiled"))

    def make(seed: int) -> tuple[torch.Tensor]:
        return (without_ties(seed, w.rows, device),)

    return case("top-k", w, device, 1, make, ways, gate)


def _all_of(index: torch.Tensor, rows: Sequence[torch.Tensor]) -> Check:
    """This index, and the rows it names."""
    return exactly([index, *(x[index] for x in rows)])


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny, *NAMES):
        yield random_case(w, device)
        yield topk_case(w, device)


if __name__ == "__main__":
    main("fused", cases)
