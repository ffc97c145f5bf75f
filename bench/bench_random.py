"""Random picks: one launch against `randperm` per picture and against one vectorised draw.

The baselines draw from PyTorch's generator: other picks in every call, and of a picture others in
other company. Their rows must be as many as asked, distinct and ascending. vtfast's must be those
that Python integers give for the same names, bit for bit.

    python bench/bench_random.py --help
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from harness import Case, Way, main
from parity import a_selection, exactly, oracles
from shapes import Workload, workloads

from vtfast.ops import Ragged, random_select

SHARE = 0.125


def loop(segments: Ragged, keep: Sequence[int]) -> Callable[..., torch.Tensor]:
    """Picture by picture."""
    cuts = list(zip(segments.offsets, segments.lengths, keep, strict=False))
    device = segments.device

    def per_picture(*names: torch.Tensor) -> torch.Tensor:
        picks = [torch.randperm(n, device=device)[:k].sort().values + a for a, n, k in cuts]
        return torch.cat(picks).int()

    return per_picture


def vectorised(segments: Ragged, keep: Sequence[int]) -> Callable[..., torch.Tensor]:
    """The largest of uniform numbers, padded."""
    kept = Ragged.from_lengths(keep, segments.device)
    starts, most = segments.cu_seqlens[:-1, None], max(keep)
    shape, device = (len(segments), segments.max_seqlen), segments.device
    dead = None if segments.uniform_length is not None else ~segments.live
    cells = None if kept.uniform_length is not None else kept.cells

    def rand_topk(*names: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(shape, device=device)
        if dead is not None:
            draws = draws.masked_fill(dead, -1.0)
        rows = draws.topk(most).indices + starts
        return (rows.flatten() if cells is None else rows[cells]).sort().values.int()

    return rand_topk


def case(w: Workload, device: str) -> Case:
    segments, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)
    one_draw = vectorised(segments, keep)

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        names = torch.tensor([seed + 7]), torch.tensor([seed], dtype=torch.int32)
        return tuple(name.to(device) for name in names)

    def ours(seed: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        return random_select(segments, keep, seed=seed, stream=stream)

    def gate(inputs: tuple[torch.Tensor, torch.Tensor]):
        seed, stream = (name.item() for name in inputs)
        keys = range(len(w.lengths))
        rows = oracles.random_select(w.lengths, keep, seed, keys, stream)
        return exactly(torch.tensor(rows, dtype=torch.int32))

    def any_rows(inputs: tuple):
        return a_selection(w.lengths, keep)

    name = "rand, topk, sort, compiled"
    compiled = [Way(name, lambda compile: compile(one_draw), "compiled", any_rows)]
    return Case(
        name=w.name,
        shape=f"{len(w.lengths)} pictures, {w.rows} rows -> {sum(keep)}",
        dtype=torch.int32,
        make=make,
        ways=[
            Way("randperm per picture", loop(segments, keep), "eager", any_rows),
            Way("rand, topk, sort", one_draw, "fair", any_rows),
            Way("vtfast", ours, "vtfast"),
            *(compiled if w.name in ("llava b8", "qwen 16k") else []),
        ],
        gate=gate,
        nbytes=4 * sum(keep),
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w, device)


if __name__ == "__main__":
    main("random", cases)
