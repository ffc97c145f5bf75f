"""Attention of one new query per sequence, each over its own rows of a KV cache.

`out[s, h] = sum_j softmax_j(scale · q[s, h] · k[j, h // group]) v[j, h // group]`, j running over
rows `starts[s] … starts[s] + lengths[s] - 1`. A sequence without rows gives 0.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import reference
from .checks import (
    INDEX_DTYPES,
    KERNEL_DTYPES,
    check_count,
    check_heads,
    check_impl,
    check_tensor,
    checked_ints,
)

_OP = "ragged_decode"


def ragged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor,
    *,
    starts: Sequence[int] | torch.Tensor | None = None,
    scale: float | None = None,
    k_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Attend from one query per sequence to that sequence's cached rows.

    Args:
        q: `[B, H, D]` fp32|fp16|bf16, one query per sequence.
        k_cache, v_cache: `[R, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv. Rows
            outside a sequence never enter its result, whatever they hold.
        lengths: rows of each sequence, ≥ 0: B host ints, or an int32 `[B]` tensor on the device of
            `q`, whose values are neither read back nor checked (eager then works through the whole
            cache for each sequence).
        starts: first row of each sequence, in the same form; default the prefix sums of `lengths`.
        scale: factor on the logits; default D ** -0.5.
        k_index: `[K]` int32|int64 rows of the caches; with it sequences are ranges of `k_index`.
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[B, H, D]` in the dtype of `q`.

    Raises:
        ValueError: a rank, range, count, head layout or device that does not fit.
        TypeError: a wrong type or dtype.

    >>> q, cache = torch.randn(2, 8, 64), torch.randn(20, 2, 64)
    >>> ragged_decode(q, cache, cache, [5, 9], starts=[0, 10]).shape
    torch.Size([2, 8, 64])
    """
    check_impl(_OP, impl, has_kernel=False)
    check_tensor(_OP, "q", q, ndim=3, dtypes=KERNEL_DTYPES)
    check_tensor(_OP, "k_cache", k_cache, ndim=3, dtypes=(q.dtype,), device=q.device)
    check_tensor(_OP, "v_cache", v_cache, ndim=3, dtypes=(q.dtype,), device=q.device)
    check_heads(_OP, q, k_cache, v_cache)
    rows = len(k_cache)
    if k_index is not None:
        check_tensor(_OP, "k_index", k_index, ndim=1, dtypes=INDEX_DTYPES, device=q.device)
        rows = len(k_index)
    if isinstance(lengths, torch.Tensor):
        _check_device_ranges(q, lengths, starts)
    else:
        lengths, starts = _checked_host_ranges(len(q), rows, lengths, starts)
    return reference.ragged_decode(
        q, k_cache, v_cache, lengths, starts=starts, scale=scale, k_index=k_index
    )


def _checked_host_ranges(
    batch: int, rows: int, lengths: object, starts: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    counts = checked_ints(_OP, "lengths", lengths, batch)
    starts = reference.back_to_back(counts) if starts is None else starts
    first_rows = checked_ints(_OP, "starts", starts, batch)
    for sequence, (start, length) in enumerate(zip(first_rows, counts, strict=True)):
        if start < 0 or length < 0 or start + length > rows:
            raise ValueError(
                f"{_OP}: sequence {sequence} starts at row {start} with length {length}, outside "
                f"the {rows} rows there are; pass 0 <= start and start + length <= {rows}"
            )
    return counts, first_rows


def _check_device_ranges(q: torch.Tensor, lengths: torch.Tensor, starts: Any) -> None:
    given = {"lengths": lengths} if starts is None else {"lengths": lengths, "starts": starts}
    for name, x in given.items():
        check_tensor(_OP, name, x, ndim=1, dtypes=(torch.int32,), device=q.device)
        check_count(_OP, name, x, len(q))
