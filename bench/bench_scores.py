"""Last-query scores, by which FastV ranks tokens, without building the attention matrix.

Baselines: the whole matrix, as `output_attentions` gives it to the published code; and the last row
alone. They multiply in the dtype of the model, so their scores are less precise than vtfast's.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from harness import Case, Variant, compiled, main
from parity import Check, exact_last_query_scores, nearly
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, last_query_scores

LARGEST_MATRIX = {"cuda": 2**32, "cpu": 2**28}  # bytes in fp32 of one sequence, all heads


def case(w: Workload, device: str) -> Case:
    dtype, scale = dtype_for(device), w.head_size**-0.5
    segments = Ragged.from_lengths(w.lengths, device)
    parts, equal = list(pairwise(segments.offsets)), segments.uniform_length is not None
    dead, cells = (None, None) if equal else (~segments.live[:, None, None], segments.cells)

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k = normal(2 * seed + 1, w.total, w.key_heads, w.head_size, device=device, dtype=dtype)
        queries = normal(2 * seed, w.total, w.heads, w.head_size, device=device, dtype=dtype)
        return queries[segments.cu_seqlens[1:].long() - 1], k, queries

    def whole_matrix(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        scores = []
        for a, b in parts:
            keys = k[a:b].repeat_interleave(w.heads // w.key_heads, 1)
            logits = queries[a:b].transpose(0, 1) @ keys.permute(1, 2, 0) * scale
            later = torch.ones_like(logits[0], dtype=torch.bool).triu(1)
            weights = logits.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32)
            scores.append(weights.mean(0)[-1])
        return torch.cat(scores)

    def grouped(q: torch.Tensor) -> torch.Tensor:
        return q.unflatten(1, (w.key_heads, -1)) * scale

    def per_sequence(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        logits = (
            row @ k[a:b].permute(1, 2, 0) for row, (a, b) in zip(grouped(q), parts, strict=True)
        )
        return torch.cat([x.softmax(-1, dtype=torch.float32).mean((0, 1)) for x in logits])

    def padded(q: torch.Tensor, k: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        logits = grouped(q) @ segments.pad(k, 0.0).permute(0, 2, 3, 1)
        if dead is not None:
            logits = logits.masked_fill(dead, -torch.inf)
        scores = logits.softmax(-1, dtype=torch.float32).mean((1, 2))
        return scores.flatten() if cells is None else scores[cells]

    def within(share: float) -> Callable[[tuple], Check]:
        def gate(inputs: tuple) -> Check:
            expected = exact_last_query_scores(*inputs[:2], parts, scale)
            return nearly(expected, share * expected.max().item())

        return gate

    rough, matrix = within(0.05), 4 * w.heads * max(w.lengths) ** 2
    whole = Variant("whole matrix", whole_matrix, "eager", rough)
    if matrix > LARGEST_MATRIX[device]:
        reason = f"the matrix of {w.name} would take {matrix / 2**30:.2g} GiB"
        whole = Variant("whole matrix", None, "eager", missing=reason)
    more = Variant("last row, compiled", compiled(padded), "compiled", rough)
    return Case(
        name=w.name,
        shape=f"{w.total} keys x {w.key_heads} x {w.head_size}, {w.heads} heads",
        dtype=dtype,
        make=make,
        variants=[
            whole,
            Variant("last row per sequence", per_sequence, "fair", rough),
            Variant("last row, padded", padded, "fair", rough),
            Variant(
                "vtfast", lambda q, k, _: last_query_scores(q, k, segments, scale=scale), "vtfast"
            ),
            *[more] * (w.name in ("llava b8, full", "qwen 16k, full")),
        ],
        gate=within(1e-4),
        nbytes=w.total * (w.key_heads * w.head_size * dtype.itemsize + 4),
        flops=2 * w.total * w.heads * w.head_size,
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w.prompt(), device)


OPS = {"scores": cases}

if __name__ == "__main__":
    main(OPS, __doc__)
