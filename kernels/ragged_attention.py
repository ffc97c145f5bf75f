"""Softmax attention over packed sequences, each attending to its own keys only.

`out[i] = sum_j softmax_j(scale · q[i, h] · k[j, h // group]) v[j, h // group]` within each segment.
Causal is aligned bottom-right: with nq queries and nk keys, query i sees keys j ≤ i + nk - nq. A
query that sees no key gives 0.
"""

import torch

from . import reference
from .checks import (
    INDEX_DTYPES,
    KERNEL_DTYPES,
    check_count,
    check_covers,
    check_heads,
    check_impl,
    check_segments,
    check_tensor,
)
from .ragged import Ragged

_OP = "ragged_attention"


def ragged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_segments: Ragged,
    k_segments: Ragged,
    *,
    causal: bool = True,
    scale: float | None = None,
    k_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Attend from packed queries to packed keys, sequence by sequence.

    Args:
        q: `[Tq, H, D]` fp32|fp16|bf16; last dimension contiguous, any stride before it.
        k, v: `[Tk, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv.
        q_segments, k_segments: B sequences each; their lengths may differ and be 0.
        causal: bottom-right causal mask, or none.
        scale: factor on the logits; default D ** -0.5.
        k_index: `[K]` int32|int64 rows of `k` and `v`, 0 ≤ k_index[j] < Tk, not checked on a CUDA
            device. With it `k_segments` cuts `k_index`, so sequences may share rows.
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[Tq, H, D]` in the dtype of `q`.

    Raises:
        ValueError: a rank, row count, head layout or device that does not fit.
        TypeError: a wrong type or dtype.

    >>> q, k = torch.randn(7, 8, 64), torch.randn(9, 2, 64)
    >>> q_cut, k_cut = Ragged.from_lengths([3, 4], "cpu"), Ragged.from_lengths([5, 4], "cpu")
    >>> ragged_attention(q, k, k, q_cut, k_cut).shape
    torch.Size([7, 8, 64])
    """
    check_impl(_OP, impl, has_kernel=False)
    check_segments(_OP, "q_segments", q_segments)
    check_segments(_OP, "k_segments", k_segments)
    device = q_segments.device
    check_tensor(_OP, "q", q, ndim=3, dtypes=KERNEL_DTYPES, device=device)
    check_tensor(_OP, "k", k, ndim=3, dtypes=(q.dtype,), device=device)
    check_tensor(_OP, "v", v, ndim=3, dtypes=(q.dtype,), device=device)
    check_heads(_OP, q, k, v)
    check_covers(_OP, "q_segments", q_segments, "q", len(q))
    if k_index is None:
        check_covers(_OP, "k_segments", k_segments, "k", len(k))
    else:
        check_tensor(_OP, "k_index", k_index, ndim=1, dtypes=INDEX_DTYPES, device=device)
        check_covers(_OP, "k_segments", k_segments, "k_index", len(k_index))
    check_count(_OP, "k_segments", k_segments, len(q_segments))
    return reference.ragged_attention(
        q, k, v, q_segments, k_segments, causal=causal, scale=scale, k_index=k_index
    )
