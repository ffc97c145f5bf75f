"""Score every key by the attention it gets from its sequence's last query (FastV).

`scores[j] = mean over heads h of softmax_j(scale · q[h] · k[j, h // group])`, where the softmax
runs over all keys of the sequence, in fp32: one row of the attention matrix, the only one built.

Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024), re-derived.
"""

import torch

from . import reference
from .checks import (
    KERNEL_DTYPES,
    check_count,
    check_covers,
    check_heads,
    check_impl,
    check_segments,
    check_tensor,
)
from .ragged import Ragged

_OP = "last_query_scores"


def last_query_scores(
    q: torch.Tensor, k: torch.Tensor, segments: Ragged, *, scale: float, impl: str = "auto"
) -> torch.Tensor:
    """Average over heads how much each sequence's last query attends to each of its keys.

    Args:
        q: `[B, H, D]` fp32|fp16|bf16, the last query of each sequence, rotated like the keys.
        k: `[T, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv, head h reads key head
            h // (H / Hkv).
        segments: B sequences cutting the T rows of `k`.
        scale: factor on the logits, usually D ** -0.5.
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[T]` fp32; the scores of one sequence sum to 1.

    Raises:
        ValueError: a rank, row count, head layout or device that does not fit.
        TypeError: a wrong type or dtype.

    >>> q, k = torch.randn(2, 8, 64), torch.randn(10, 2, 64)
    >>> last_query_scores(q, k, Ragged.from_lengths([6, 4], "cpu"), scale=0.125).shape
    torch.Size([10])
    """
    check_impl(_OP, impl, has_kernel=False)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "q", q, ndim=3, dtypes=KERNEL_DTYPES, device=segments.device)
    check_tensor(_OP, "k", k, ndim=3, dtypes=(q.dtype,), device=segments.device)
    check_heads(_OP, q, k)
    check_covers(_OP, "segments", segments, "k", len(k))
    check_count(_OP, "q", q, len(segments))
    return reference.last_query_scores(q, k, segments, scale=scale)
