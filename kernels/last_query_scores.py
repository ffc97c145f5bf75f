"""Score every key by the attention it gets from its sequence's last query (FastV).

`scores[j] = mean over heads h of softmax_j(scale · q[h] · k[j, h // group])`, where the softmax
runs over all keys of the sequence, in fp32: one row of the attention matrix, the only one built.

Two launches. The first reads every key once for all queries of its group, in 16 splits a sequence,
and keeps the logits with each split's largest and sum; the second merges the splits and averages
over heads. No atomics, and no split depends on the batch, so the bits do not either. Traffic: the
keys once (per 16 query heads of theirs), 4 H T bytes of logits out and in, T scores. Limits: fp32,
fp16, bf16 and head sizes up to 256; no backward; "auto" takes the twin for what is beyond.

Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024), re-derived.
"""

import torch

from . import reference
from ._checks import (
    TWIN_DTYPES,
    check_count,
    check_covers,
    check_heads,
    check_impl,
    check_segments,
    check_tensor,
    foreign,
)
from ._launch import (
    INTERPRET,
    cdiv,
    fp32_precision,
    next_power_of_2,
    on_device_of,
    register,
    tl,
    triton,
    use_triton,
)
from ._threshold import segment_bounds
from .ragged import Ragged

_OP = "last_query_scores"
_MAX_HEAD = 256
_LOG2E = 1.4426950408889634

_SPLITS = 16  # of a sequence's keys, whatever the batch: a sequence scores the same in any company
_HEADS = 16  # query heads of a program, what a tensor core takes at least; 64 in fp32 spill
_WARPS = 4
_STAGES = {4: 2, 2: 3}  # by the size of a number: fp32 would not fit the shared memory of gfx942
_MERGE_HEADS, _MERGE_KEYS, _MERGE_WARPS = 16, 128, 4


@triton.jit
def _share(n, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of a split: whole blocks, so that the later splits of a short sequence are empty."""
    return tl.cdiv(tl.cdiv(n, SPLITS), BLOCK) * BLOCK


@triton.jit(do_not_specialize=["total"])
def _logits_kernel(
    # pointers
    q_ptr,
    k_ptr,
    cu_seqlens_ptr,
    logits_ptr,
    top_ptr,
    weight_ptr,
    # sizes
    total,
    # strides
    stride_qb,
    stride_qh,
    stride_kt,
    stride_kh,
    # factor on the products, to the base 2
    scale,
    # meta
    GROUP: tl.constexpr,  # query heads of a key head
    ROWS: tl.constexpr,  # those of a program, padded to what a tensor core takes; 1 goes without it
    PARTS: tl.constexpr,  # programs that share a group
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (sequences, key heads x PARTS, splits): a program reads its keys once, for ROWS queries.

    It stores their logits (base 2), the largest of them, and the sum of 2^(logit - largest).
    """
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    share = _share(n, SPLITS, KEYS)
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, n)
    if begin >= n:
        return
    key_head = tl.program_id(1) // PARTS
    member = tl.program_id(1) % PARTS * ROWS + tl.arange(0, ROWS)
    head = key_head * GROUP + member
    d = tl.arange(0, BLOCK_D)
    q_offset = segment.to(tl.int64) * stride_qb + head.to(tl.int64)[:, None] * stride_qh
    q_mask = (member < GROUP)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + q_offset + d[None, :], mask=q_mask, other=0.0)
    if INTERPRET or ROWS == 1:
        q = q.to(tl.float32)

    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        live = key < end
        row = (first + key).to(tl.int64)
        k_offset = row[:, None] * stride_kt + key_head.to(tl.int64) * stride_kh
        k_mask = live[:, None] & (d < D)[None, :]
        k = tl.load(k_ptr + k_offset + d[None, :], mask=k_mask, other=0.0)
        if INTERPRET or ROWS == 1:
            k = k.to(tl.float32)
        if ROWS == 1:
            logits = tl.sum(q * k, axis=1)[None, :] * scale
        else:
            logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        to = head.to(tl.int64)[:, None] * total + row[None, :]
        tl.store(logits_ptr + to, logits, mask=(member < GROUP)[:, None] & live[None, :])
        logits = tl.where(live[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = weight * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), axis=1)
        top = higher
    heads = tl.num_programs(1) // PARTS * GROUP
    part = (segment * heads + head) * SPLITS + tl.program_id(2)
    tl.store(top_ptr + part, top, mask=member < GROUP)
    tl.store(weight_ptr + part, weight, mask=member < GROUP)


@triton.jit(do_not_specialize=["total"])
def _merge_kernel(
    # pointers
    logits_ptr,
    top_ptr,
    weight_ptr,
    cu_seqlens_ptr,
    scores_ptr,
    # sizes
    total,
    # meta
    H: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,  # KEYS of the kernel above
):
    """Grid (sequences, blocks of KEYS keys): softmax over all keys, then the mean over heads."""
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    live = key < n
    if tl.program_id(1) * KEYS >= n:
        return
    split = tl.arange(0, SPLITS)
    filled = split * _share(n, SPLITS, SPLIT_KEYS) < n
    scores = tl.zeros([KEYS], tl.float32)
    for start in range(0, H, HEADS):
        head = start + tl.arange(0, HEADS)
        known = head < H
        part = (segment * H + head)[:, None] * SPLITS + split[None, :]
        mask = known[:, None] & filled[None, :]
        tops = tl.load(top_ptr + part, mask=mask, other=float("-inf"))
        weights = tl.load(weight_ptr + part, mask=mask, other=0.0)
        top = tl.max(tops, axis=1)
        base = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.sum(weights * tl.exp2(tops - base[:, None]), axis=1)
        weight = tl.where(known, weight, 1.0)
        at = head.to(tl.int64)[:, None] * total + (first + key)[None, :]
        both = known[:, None] & live[None, :]
        logits = tl.load(logits_ptr + at, mask=both, other=float("-inf"))
        scores += tl.sum(tl.exp2(logits - base[:, None]) / weight[:, None], axis=0)
    tl.store(scores_ptr + first + key, scores / H, mask=live)


def _launch(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    total, key_heads, head_size = k.shape
    sequences, heads = q.shape[:2]
    scores = torch.empty(total, dtype=torch.float32, device=k.device)
    if total == 0:
        return scores
    q = q if q.stride(2) == 1 else q.contiguous()
    k = k if k.stride(2) == 1 else k.contiguous()
    logits = torch.empty(heads, total, dtype=torch.float32, device=k.device)
    tops = torch.empty(sequences, heads, _SPLITS, dtype=torch.float32, device=k.device)
    weights = torch.empty_like(tops)
    group = heads // key_heads
    parts = cdiv(group, _HEADS)
    keys = _keys(k)
    with on_device_of(k):
        filled = min(_SPLITS, cdiv(longest, keys))  # of the longest sequence
        _logits_kernel[(sequences, key_heads * parts, filled)](
            q,
            k,
            cu_seqlens,
            logits,
            tops,
            weights,
            total,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            scale * _LOG2E,
            GROUP=group,
            ROWS=1 if group == 1 else _HEADS,
            PARTS=parts,
            D=head_size,
            BLOCK_D=max(16, next_power_of_2(head_size)),
            KEYS=keys,
            SPLITS=_SPLITS,
            PRECISION=fp32_precision(),
            num_warps=_WARPS,
            num_stages=_STAGES[k.element_size()],
            enable_fp_fusion=True,
        )
        _merge_kernel[(sequences, cdiv(longest, _MERGE_KEYS))](
            logits,
            tops,
            weights,
            cu_seqlens,
            scores,
            total,
            H=heads,
            HEADS=_MERGE_HEADS,
            KEYS=_MERGE_KEYS,
            SPLITS=_SPLITS,
            SPLIT_KEYS=keys,
            num_warps=_MERGE_WARPS,
            enable_fp_fusion=True,
        )
    return scores


def _keys(k: torch.Tensor) -> int:
    """Keys read at a time. Of wide heads twice as many spill in fp32, and overfill a gfx942."""
    return 32 if k.shape[2] > 128 else 64


def _fake(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    return k.new_empty(k.shape[0], dtype=torch.float32)


_last_query_scores = register(
    "last_query_scores(Tensor q, Tensor k, Tensor cu_seqlens, int longest, float scale) -> Tensor",
    _launch,
    _fake,
)


def last_query_scores(
    q: torch.Tensor, k: torch.Tensor, segments: Ragged, *, scale: float, impl: str = "auto"
) -> torch.Tensor:
    """Average over heads how much each sequence's last query attends to each of its keys.

    Args:
        q: `[B, H, D]` fp32|fp16|bf16|fp64, the last query of each sequence, rotated like the keys.
        k: `[T, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv, head h reads key head
            h // (H / Hkv).
        segments: B sequences cutting the T rows of `k`.
        scale: factor on the logits, usually D ** -0.5.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[T]` fp32; the scores of one sequence sum to 1.

    Raises:
        ValueError: a rank, row count, head layout or device that does not fit, or what the kernel
            cannot do.
        TypeError: a wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> q, k = torch.randn(2, 8, 64), torch.randn(10, 2, 64)
    >>> last_query_scores(q, k, Ragged.from_lengths([6, 4], "cpu"), scale=0.125).shape
    torch.Size([10])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "q", q, ndim=3, dtypes=TWIN_DTYPES, device=segments.device)
    check_tensor(_OP, "k", k, ndim=3, dtypes=(q.dtype,), device=segments.device)
    check_heads(_OP, q, k)
    check_covers(_OP, "segments", segments, "k", len(k))
    check_count(_OP, "q", q, len(segments))
    if use_triton(_OP, impl, k.device, unable=beyond(k.dtype, k.shape[2])):
        with torch.no_grad():
            return _last_query_scores(q, k, segments.cu_seqlens, segments.max_seqlen, scale)
    return reference.last_query_scores(q, k, segments, scale=scale)


def beyond(dtype: torch.dtype, head_size: int) -> str:
    """Why the kernel cannot score with heads of this dtype and size, "" if it can."""
    if why := foreign(dtype):
        return why
    if 0 < head_size <= _MAX_HEAD:
        return ""
    return f"the kernel takes head sizes 1 to {_MAX_HEAD}, got {head_size}"
