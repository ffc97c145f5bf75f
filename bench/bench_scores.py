"""Last-query scores: what FastV ranks by, without building the attention matrix.

Baselines: the whole matrix, as `output_attentions` gives it to the published code; and the last row
alone, the honest rival, picture by picture, padded, and compiled. They multiply in the dtype of the
model, so their scores are rougher than ours.

    python bench/bench_scores.py --help
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from harness import Case, Way, main
from parity import nearly
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, last_query_scores

LARGEST_MATRIX = {"cuda": 2**32, "cpu": 2**28}  # bytes in fp32 of one sequence, all heads


def whole_matrix(segments: Ragged, scale: float) -> Callable[..., torch.Tensor]:
    """All queries' attention, of which all rows but one are thrown away."""

    def attentions(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        scores = []
        for a, b in pairwise(segments.offsets):
            keys = k[a:b].repeat_interleave(q.shape[1] // k.shape[1], 1)
            logits = queries[a:b].transpose(0, 1) @ keys.permute(1, 2, 0) * scale
            later = torch.ones_like(logits[0], dtype=torch.bool).triu(1)
            weights = logits.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32)
            scores.append(weights.mean(0)[-1])
        return torch.cat(scores)

    return attentions


def last_rows(segments: Ragged, scale: float) -> Callable[..., torch.Tensor]:
    """Sequence by sequence."""

    def per_sequence(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        grouped = q.unflatten(1, (k.shape[1], -1)) * scale
        scores = []
        for query, (a, b) in zip(grouped, pairwise(segments.offsets), strict=True):
            logits = query @ k[a:b].permute(1, 2, 0)
            scores.append(logits.softmax(-1, dtype=torch.float32).mean((0, 1)))
        return torch.cat(scores)

    return per_sequence


def padded_last_row(segments: Ragged, scale: float) -> Callable[..., torch.Tensor]:
    """All sequences in one product, padded to the longest."""
    equal = segments.uniform_length is not None
    dead, cells = (None, None) if equal else (~segments.live[:, None, None], segments.cells)

    def last_row(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        grouped = q.unflatten(1, (k.shape[1], -1)) * scale
        logits = grouped @ segments.pad(k, 0.0).permute(0, 2, 3, 1)
        if dead is not None:
            logits = logits.masked_fill(dead, -torch.inf)
        scores = logits.softmax(-1, dtype=torch.float32).mean((1, 2))
        return scores.flatten() if cells is None else scores[cells]

    return last_row


def exact_scores(q: torch.Tensor, k: torch.Tensor, segments: Ragged, scale: float) -> torch.Tensor:
    """In fp64, sequence by sequence."""
    scores = []
    for query, (a, b) in zip(q.double(), pairwise(segments.offsets), strict=True):
        keys = k[a:b].double().repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores.append((torch.einsum("hd,nhd->hn", query, keys) * scale).softmax(-1).mean(0))
    return torch.cat(scores)


def case(w: Workload, device: str) -> Case:
    dtype, scale = dtype_for(device), w.head_size**-0.5
    segments = Ragged.from_lengths(w.lengths, device)
    matrix = 4 * w.heads * max(w.lengths) ** 2
    padded = padded_last_row(segments, scale)

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k = normal(2 * seed + 1, w.rows, w.key_heads, w.head_size, device=device, dtype=dtype)
        queries = normal(2 * seed, w.rows, w.heads, w.head_size, device=device, dtype=dtype)
        return queries[segments.cu_seqlens[1:].long() - 1], k, queries

    def within(share: float) -> Callable[[tuple], Callable[[object], str]]:
        def gate(inputs: tuple) -> Callable[[object], str]:
            expected = exact_scores(*inputs[:2], segments, scale)
            return nearly(expected, share * expected.max().item())

        return gate

    rough = within(0.05)
    whole = Way("whole matrix", whole_matrix(segments, scale), "eager", rough)
    if matrix > LARGEST_MATRIX[device]:
        reason = f"the matrix of {w.name} would take {matrix / 2**30:.2g} GiB"
        whole = Way("whole matrix", None, "eager", missing=reason)
    compiled = Way("last row, compiled", lambda compile: compile(padded), "compiled", rough)
    return Case(
        name=w.name,
        shape=f"{w.rows} keys x {w.key_heads} x {w.head_size}, {w.heads} heads",
        dtype=dtype,
        make=make,
        ways=[
            whole,
            Way("last row per sequence", last_rows(segments, scale), "fair", rough),
            Way("last row, padded", padded, "fair", rough),
            Way("vtfast", lambda q, k, _: last_query_scores(q, k, segments, scale=scale), "vtfast"),
            *([compiled] if w.name in ("llava b8, full", "qwen 16k, full") else []),
        ],
        gate=within(1e-4),
        nbytes=w.rows * (w.key_heads * w.head_size * dtype.itemsize + 4),
        flops=2 * w.rows * w.heads * w.head_size,
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w.prompt(), device)


if __name__ == "__main__":
    main("scores", cases)
