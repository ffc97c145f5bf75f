"""A short list of small ragged calls, one or more of every op: what the device checks call.

Lengths are odd, empty, one row, and around what a program holds; inputs are made once, so that a
call alone does what the op does.
"""

from collections.abc import Callable

import torch
from shapes import dtype_for, normal

from vtfast.ops import (
    Ragged,
    diversity_select,
    gather_rows,
    last_query_scores,
    ragged_attention,
    ragged_decode,
    random_select,
    topk_select,
)

LENGTHS, KEEP = (3, 0, 63, 1, 577), (2, 0, 31, 1, 58)
HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 64
Call = tuple[Callable[..., object], list[torch.Tensor]]


def op_calls(device: str) -> dict[str, Call]:
    """Name → a function and the tensors that go in; random numbers that a check may overwrite."""
    dtype = dtype_for(device)
    cut, kept = (Ragged.from_lengths(n, device) for n in (LENGTHS, KEEP))

    def fresh(seed: int, *shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return normal(seed, *shape, device=device, dtype=kind)

    features = fresh(1, cut.total, 96)
    k, v = (fresh(seed, cut.total, KEY_HEADS, HEAD_SIZE) for seed in (2, 3))
    q, few = fresh(4, cut.total, HEADS, HEAD_SIZE), fresh(5, kept.total, HEADS, HEAD_SIZE)
    last = fresh(6, len(cut), HEADS, HEAD_SIZE)
    index = random_select(cut, KEEP, seed=0, stream=0)
    seed, stream = (torch.tensor([7], device=device, dtype=d) for d in (torch.int64, torch.int32))
    lengths, scores = cut.cu_seqlens.diff(), fresh(7, cut.total, kind=torch.float32)
    return {
        "gather_rows": (lambda *x: gather_rows(index, *x), [features, k, q]),
        "random_select": (
            lambda *names: random_select(cut, KEEP, seed=names[0], stream=names[1]),
            [seed, stream],
        ),
        "topk_select": (lambda scores: topk_select(scores, cut, KEEP), [scores]),
        "random_select, gather": (
            lambda *x: _flat(random_select(cut, KEEP, seed=x[0], stream=x[1], gather=x[2:])),
            [seed, stream, features, k],
        ),
        "topk_select, gather": (
            lambda scores, *x: _flat(topk_select(scores, cut, KEEP, gather=x)),
            [scores, features, k],
        ),
        "diversity_select": (lambda x: diversity_select(x, cut, KEEP), [features]),
        "last_query_scores": (
            lambda q, k: last_query_scores(q, k, cut, scale=HEAD_SIZE**-0.5),
            [last, k],
        ),
        "ragged_attention": (lambda q, k, v: ragged_attention(q, k, v, cut, cut), [q, k, v]),
        "ragged_attention, index": (
            lambda q, k, v: ragged_attention(q, k, v, kept, kept, k_index=index),
            [few, k, v],
        ),
        "ragged_decode": (lambda q, k, v: ragged_decode(q, k, v, lengths), [last, k, v]),
    }


def _flat(answer: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    return [answer[0], *answer[1]]
