"""Top-k per picture: one launch against a loop of `torch.topk` and against padded batches.

Every way gives rows in ascending order, as pruning needs them, so sorting is part of it. Scores are
random numbers without ties, on which `torch.topk` has one answer; vtfast would also have one with.

    python bench/bench_topk.py --help
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from harness import Case, Way, installed, main
from parity import exactly, rows_of_sorted
from shapes import Workload, workloads

from vtfast.ops import Ragged, topk_select

SHARE = 0.5


def loop(segments: Ragged, keep: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Picture by picture."""
    cuts = list(zip(segments.offsets, segments.lengths, keep, strict=False))

    def per_picture(scores: torch.Tensor) -> torch.Tensor:
        picks = [scores[a : a + n].topk(k).indices.sort().values + a for a, n, k in cuts]
        return torch.cat(picks).int()

    return per_picture


def padded(segments: Ragged, keep: Sequence[int], rank: Callable) -> Callable[..., torch.Tensor]:
    """The padded batch at once: `rank` gives the best columns, as many as any picture needs."""
    kept = Ragged.from_lengths(keep, segments.device)
    starts, most = segments.cu_seqlens[:-1, None], max(keep)
    cells = None if kept.uniform_length is not None else kept.cells

    def padded_topk(scores: torch.Tensor) -> torch.Tensor:
        rows = rank(segments.pad(scores, -torch.inf), most) + starts
        return (rows.flatten() if cells is None else rows[cells]).sort().values.int()

    return padded_topk


def by_topk(scores: torch.Tensor, k: int) -> torch.Tensor:
    return scores.topk(k).indices


def by_stable_sort(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The plain way to have ties decided."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def flashinfer(segments: Ragged, keep: Sequence[int]) -> Way:
    """FlashInfer's top-k, for batches of one length."""
    name = "FlashInfer top_k, index sort"
    top_k, missing = installed("flashinfer", "top_k")
    if top_k is None:
        return Way(name, None, "fair", missing=missing)
    if segments.uniform_length is None or len(set(keep)) != 1:
        return Way(name, None, "fair", missing="takes equal lengths only")
    starts = segments.cu_seqlens[:-1, None]

    def sorted_top_k(scores: torch.Tensor) -> torch.Tensor:
        _, columns = top_k(segments.pad(scores, 0.0), keep[0])
        return (columns + starts).flatten().sort().values.int()

    return Way(name, sorted_top_k, "fair")


def case(w: Workload, device: str) -> Case:
    segments, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)
    one_topk = padded(segments, keep, by_topk)
    compiled = Way("padded topk, sort, compiled", lambda compile: compile(one_topk), "compiled")

    def make(seed: int) -> tuple[torch.Tensor]:
        return (without_ties(seed, w.rows, device),)

    return Case(
        name=w.name,
        shape=f"{len(w.lengths)} pictures, {w.rows} rows -> {sum(keep)}",
        dtype=torch.float32,
        make=make,
        ways=[
            Way("topk per picture", loop(segments, keep), "eager"),
            Way("padded topk, sort", one_topk, "fair"),
            Way("padded stable sort", padded(segments, keep, by_stable_sort), "fair"),
            flashinfer(segments, keep),
            Way("vtfast", lambda scores: topk_select(scores, segments, keep), "vtfast"),
            *([compiled] if w.name in ("llava b8", "qwen 16k") else []),
        ],
        gate=lambda inputs: exactly(rows_of_sorted(*inputs, w.lengths, keep)),
        nbytes=4 * w.rows + 4 * sum(keep),
    )


def without_ties(seed: int, rows: int, device: str) -> torch.Tensor:
    """fp32 scores as FastV's, positive and all different."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).to(device)
    return (order + 1.0) / rows


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w, device)


if __name__ == "__main__":
    main("topk", cases)
