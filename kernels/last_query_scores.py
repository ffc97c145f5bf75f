"""Score every key by the attention that its sequence's last query pays to it (FastV).

`scores[j] = mean over heads h of softmax_j(scale · q[h] · k[j, h // group])`, where the softmax
runs over all keys of the sequence, in fp32: one row of the attention matrix, the only one built.

Two launches. The first reads every key once for all query heads that share it, in 16 splits a
sequence, and stores the logits and the softmax state (m_i, l_i) of each split; the second merges
the splits and averages over heads. There are no atomics, and splits do not depend on the batch, so
neither do the bits of the result. Traffic: the keys once (per 16 query heads that share them),
4·H·T bytes of logits out and in again, T scores out. Limits: fp32, fp16, bf16 and head sizes up to
256; no backward; "auto" falls back to PyTorch for anything else.

Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (ECCV 2024), re-derived.
"""

import torch

from . import reference
from ._checks import (
    REFERENCE_DTYPES,
    check_count,
    check_covers,
    check_heads,
    check_impl,
    check_segments,
    check_tensor,
    why_unsupported_dtype,
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
from ._online_softmax import LOG2E, with_contiguous_rows
from ._threshold import segment_bounds
from .ragged import Ragged

_OP = "last_query_scores"
_MAX_HEAD = 256

_SPLITS = 16  # of every sequence, so that scores do not depend on the batch
_HEADS = 16  # query heads of a program: the least that tensor cores take; 64 in fp32 spill
_WARPS = 4
_STAGES = {4: 2, 2: 3}  # by element size: 3 in fp32 do not fit the shared memory of gfx942
# One warp needs one barrier for 32 heads and 32 keys. Four, with 128 keys, need four barriers for
# every 16 heads, and as many instructions each.
_MERGE_HEADS, _MERGE_KEYS, _MERGE_WARPS = 32, 32, 1


@triton.jit
def _keys_of_split(n, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many keys a split has: whole blocks, so the last splits of a short sequence are empty."""
    return tl.cdiv(tl.cdiv(n, SPLITS), BLOCK) * BLOCK


@triton.jit(do_not_specialize=["total"])
def _logits_kernel(
    # pointers
    q_ptr,
    k_ptr,
    cu_seqlens_ptr,
    logits_ptr,
    top_ptr,  # m_i of each split: [sequences, SPLITS, heads], stored and read as whole lines
    weight_ptr,  # l_i of each split, likewise
    # sizes
    total,
    # strides
    stride_qb,
    stride_qh,
    stride_kt,
    stride_kh,
    # factor on the logits, times log2(e)
    scale,
    # meta
    GROUP: tl.constexpr,  # query heads of a key head
    ROWS: tl.constexpr,  # query heads of a program: padded for tensor cores, or 1 without them
    PARTS: tl.constexpr,  # programs that share a group
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,  # BLOCK_N
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (sequences, key heads x PARTS, splits): a program reads its keys once, for ROWS queries.

    It stores their logits (to the base 2), the largest of them (m_i), and Σ 2^(logit - m_i) (l_i).
    """
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    share = _keys_of_split(n, SPLITS, KEYS)
    begin = tl.program_id(2) * share
    end = tl.minimum(begin + share, n)
    if begin >= n:
        return
    key_head = tl.program_id(1) // PARTS
    member = tl.program_id(1) % PARTS * ROWS + tl.arange(0, ROWS)  # of the group of key_head
    head = key_head * GROUP + member
    d = tl.arange(0, BLOCK_D)
    q_offset = segment.to(tl.int64) * stride_qb + head.to(tl.int64)[:, None] * stride_qh
    q_mask = (member < GROUP)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + q_offset + d[None, :], mask=q_mask, other=0.0)
    if INTERPRET or ROWS == 1:
        q = q.to(tl.float32)

    m_i = tl.full([ROWS], float("-inf"), tl.float32)
    l_i = tl.zeros([ROWS], tl.float32)
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
        m_new = tl.maximum(m_i, tl.max(logits, axis=1))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        l_i = l_i * tl.exp2(m_i - base) + tl.sum(tl.exp2(logits - base[:, None]), axis=1)
        m_i = m_new
    heads = tl.num_programs(1) // PARTS * GROUP
    part = (segment * SPLITS + tl.program_id(2)) * heads + head
    tl.store(top_ptr + part, m_i, mask=member < GROUP)
    tl.store(weight_ptr + part, l_i, mask=member < GROUP)


@triton.jit(do_not_specialize=["total"])
def _merge_kernel(
    # pointers
    logits_ptr,
    top_ptr,  # m_i of each split
    weight_ptr,  # l_i of each split
    cu_seqlens_ptr,
    scores_ptr,
    # sizes
    total,
    # meta
    H: tl.constexpr,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,  # KEYS of `_logits_kernel`
):
    """Grid (sequences, blocks of KEYS keys): softmax over all keys, then the mean over heads."""
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    live = key < n
    if tl.program_id(1) * KEYS >= n:
        return
    split = tl.arange(0, SPLITS)
    filled = split * _keys_of_split(n, SPLITS, SPLIT_KEYS) < n
    scores = tl.zeros([KEYS], tl.float32)
    for start in range(0, H, HEADS):
        head = start + tl.arange(0, HEADS)
        head_live = head < H
        part = (segment * SPLITS + split)[:, None] * H + head[None, :]
        mask = filled[:, None] & head_live[None, :]
        m_split = tl.load(top_ptr + part, mask=mask, other=float("-inf"))
        l_split = tl.load(weight_ptr + part, mask=mask, other=0.0)
        m_i = tl.max(m_split, axis=0)
        base = tl.where(m_i == float("-inf"), 0.0, m_i)
        l_i = tl.sum(l_split * tl.exp2(m_split - base[None, :]), axis=0)
        l_i = tl.where(head_live, l_i, 1.0)
        at = head.to(tl.int64)[:, None] * total + (first + key)[None, :]
        both = head_live[:, None] & live[None, :]
        logits = tl.load(logits_ptr + at, mask=both, other=float("-inf"))
        scores += tl.sum(tl.exp2(logits - base[:, None]) / l_i[:, None], axis=0)
    tl.store(scores_ptr + first + key, scores / H, mask=live)


def _launch(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    total, key_heads, head_size = k.shape
    sequences, heads = q.shape[:2]
    scores = torch.empty(total, dtype=torch.float32, device=k.device)
    if total == 0:
        return scores
    q, k = with_contiguous_rows(q), with_contiguous_rows(k)
    logits = torch.empty(heads, total, dtype=torch.float32, device=k.device)
    m_split = torch.empty(sequences, _SPLITS, heads, dtype=torch.float32, device=k.device)
    l_split = torch.empty_like(m_split)
    group = heads // key_heads
    parts = cdiv(group, _HEADS)
    # For wide heads, 64 keys would spill in fp32 and exceed the shared memory of gfx942.
    keys = 32 if head_size > 128 else 64
    with on_device_of(k):
        filled = min(_SPLITS, cdiv(longest, keys))  # of the longest sequence
        _logits_kernel[(sequences, key_heads * parts, filled)](
            q,
            k,
            cu_seqlens,
            logits,
            m_split,
            l_split,
            total,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            scale * LOG2E,
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
            m_split,
            l_split,
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


_last_query_scores = register(
    "last_query_scores(Tensor q, Tensor k, Tensor cu_seqlens, int longest, float scale) -> Tensor",
    _launch,
    lambda q, k, *others: k.new_empty(k.shape[0], dtype=torch.float32),
)


def why_unsupported_heads(dtype: torch.dtype, head_size: int) -> str:
    """Why the kernel cannot score with heads of this dtype and size; "" if it can."""
    if why := why_unsupported_dtype(dtype):
        return why
    if 0 < head_size <= _MAX_HEAD:
        return ""
    return f"the kernel takes head sizes 1 to {_MAX_HEAD}, got {head_size}"


def last_query_scores(
    q: torch.Tensor, k: torch.Tensor, segments: Ragged, *, scale: float, impl: str = "auto"
) -> torch.Tensor:
    """Average over heads how much each sequence's last query attends to each of its keys.

    Args:
        q: `[B, H, D]` fp32|fp16|bf16|fp64, the last query of each sequence, rotated like the keys.
        k: `[T, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv, head h reads key head
            h // (H / Hkv).
        segments: the B sequences that the T rows of `k` belong to.
        scale: factor on the logits, usually D ** -0.5.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[T]` fp32; the scores of one sequence sum to 1.

    Raises:
        ValueError: a rank, row count, head layout or device that does not fit, or impl="triton" for
            what the kernel cannot do.
        TypeError: a wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> q, k = torch.randn(2, 8, 64), torch.randn(10, 2, 64)
    >>> last_query_scores(q, k, Ragged.from_lengths([6, 4], "cpu"), scale=0.125).shape
    torch.Size([10])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "q", q, ndim=3, dtypes=REFERENCE_DTYPES, device=segments.device)
    check_tensor(_OP, "k", k, ndim=3, dtypes=(q.dtype,), device=segments.device)
    check_heads(_OP, q, k)
    check_covers(_OP, "segments", segments, "k", len(k))
    check_count(_OP, "q", q, len(segments))
    why = why_unsupported_heads(k.dtype, k.shape[2])
    if use_triton(_OP, impl, k.device, why_unsupported=why):
        with torch.no_grad():
            return _last_query_scores(q, k, segments.cu_seqlens, segments.max_seqlen, scale)
    return reference.last_query_scores(q, k, segments, scale=scale)
