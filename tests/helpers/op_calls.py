"""Small ragged calls, one or more of every op, to check a device with and to time launches.

python tests/helpers/op_calls.py DEVICE    # every op once, for compute-sanitizer to watch
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from shapes import dtype_for, normal

from vtfast import ops
from vtfast.ops import Ragged

# Odd, empty, one token, and around what a program holds.
LENGTHS, KEEP = (3, 0, 63, 1, 577), (2, 0, 31, 1, 58)
HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 64


def op_calls(device: str, impl: str = "auto") -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """Small ragged calls, one or more of every op: name → a function and the tensors it takes."""
    dtype, segments = dtype_for(device), Ragged.from_lengths(LENGTHS, device)
    kept, named = Ragged.from_lengths(KEEP, device), {"impl": impl}

    def fresh(seed: int, *shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return normal(seed, *shape, device=device, dtype=kind)

    def attention(*qkv: torch.Tensor):
        return ops.ragged_attention(*qkv, segments, segments, **named)

    features, total = fresh(1, segments.total, 96), segments.total
    k, v = (fresh(seed, total, KEY_HEADS, HEAD_SIZE) for seed in (2, 3))
    q, few = fresh(4, total, HEADS, HEAD_SIZE), fresh(5, kept.total, HEADS, HEAD_SIZE)
    last, scores = fresh(6, len(segments), HEADS, HEAD_SIZE), fresh(7, total, kind=torch.float32)
    index = ops.random_select(segments, KEEP, seed=0, stream=0)
    words = [torch.tensor([7], device=device, dtype=d) for d in (torch.int64, torch.int32)]
    lengths, scale = segments.cu_seqlens.diff(), HEAD_SIZE**-0.5
    indexed = {"k_index": index, **named}
    grid = torch.stack([torch.ones_like(lengths)] * 2 + [lengths], 1)
    return {
        "gather_rows": (lambda *x: ops.gather_rows(index, *x, **named), [features, k, q]),
        "random_select": (
            lambda seed, stream: ops.random_select(
                segments, KEEP, seed=seed, stream=stream, **named
            ), words
        ),
        "topk_select": (lambda x: ops.topk_select(x, segments, KEEP, **named), [scores]),
        "diversity_select": (lambda x: ops.diversity_select(x, segments, KEEP, **named), [features]),  # noqa: E501
        "diversity_select, weights": (
            lambda x, w: ops.diversity_select(x, segments, KEEP, weights=w.abs(), **named),
            [features, scores],
        ),
        "dpp_select": (lambda *x: ops.dpp_select(*x, segments, KEEP, **named), [features, scores]),
        "coverage_select": (
            lambda *x: ops.coverage_select(*x, segments, KEEP, **named), [features, scores.exp()]
        ),
        "image_hash": (lambda x: ops.image_hash(x, grid, **named), [features]),
        "last_query_scores": (
            lambda q, k: ops.last_query_scores(q, k, segments, scale=scale, **named), [last, k]
        ),
        "ragged_attention": (attention, [q, k, v]),
        "ragged_attention, index": (
            lambda *qkv: ops.ragged_attention(*qkv, kept, kept, **indexed), [few, k, v]
        ),
        "ragged_decode": (lambda *qkv: ops.ragged_decode(*qkv, lengths, **named), [last, k, v]),
    }  # fmt: skip


if __name__ == "__main__":
    for name, (call, tensors) in op_calls(sys.argv[1]).items():
        call(*tensors)
        print(name, flush=True)
