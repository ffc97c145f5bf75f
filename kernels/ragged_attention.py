"""Softmax attention over packed sequences, each attending to its own keys only, in one launch.

`out[i] = sum_j softmax_j(scale · q[i, h] · k[j, h // group]) v[j, h // group]` within each segment.
Causal is aligned bottom-right: with nq queries and nk keys, query i sees keys j ≤ i + nk - nq. A
query that sees no key gives 0.

A program takes a tile of queries of one head and folds the keys in block by block (online softmax),
so no matrix is ever written: traffic is q and out once, and the keys and values once for every
tile. There is no padding, and no list of tiles: each program finds its sequence in `cu_seqlens`.
With `k_index` keys and values are read in place through it, so sequences may share rows. The tile
size depends on the batch, but both tile sizes share BLOCK_N (here `KEYS`), so a result does not
depend on the batch.

Limits: fp32, fp16, bf16 and head sizes up to 256 (fp32: 128, more would spill), a scale above 0; no
backward; "auto" falls back to PyTorch for anything else.

Source: Dao, FlashAttention-2, arXiv 2307.08691, re-derived.
"""

from inspect import signature
from typing import Any

import torch

from . import reference
from ._checks import (
    INDEX_DTYPES,
    REFERENCE_DTYPES,
    check_count,
    check_covers,
    check_heads,
    check_impl,
    check_segments,
    check_tensor,
)
from ._launch import architecture, fp32_precision, on_device_of, register, tl, triton, use_triton
from ._online_softmax import (
    LOG2E,
    dot_operand,
    init_softmax_state,
    online_softmax_step,
    round_to,
    why_unsupported_attention,
    with_contiguous_rows,
)
from ._threshold import segment_bounds
from ._tiles import attention_tiles, padded_head
from .ragged import Ragged

_OP = "ragged_attention"
_WAVE = 128  # programs: about one for each multiprocessor of the GPUs in `_tiles.py`


@triton.jit
def _segment_of_tile(cu_ptr, num_segments, number, QUERIES: tl.constexpr):
    """The segment that tile `number` belongs to, and the tile's number in it, by binary search.

    The tiles of segment s start at number cu[s] // QUERIES + s. That is always enough tiles for a
    segment, and at most one more than it needs.
    """
    low = number * 0  # 0 as a tensor, since the loop changes it
    high = low + num_segments - 1
    while low < high:
        middle = (low + high + 1) // 2
        before = tl.load(cu_ptr + middle) // QUERIES + middle <= number
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    return low, number - (tl.load(cu_ptr + low) // QUERIES + low)


@triton.jit(do_not_specialize=["num_segments"])
def _attention_kernel(
    # pointers
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    cu_q_ptr,
    cu_k_ptr,
    index_ptr,  # None: cu_k gives the rows of keys and values themselves
    # sizes
    num_segments,
    # strides
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    # factor on the logits, times log2(e)
    scale,
    # meta
    GROUP: tl.constexpr,  # query heads of a key head
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D padded to a power of 2
    QUERIES: tl.constexpr,  # BLOCK_M
    KEYS: tl.constexpr,  # BLOCK_N
    PRECISION: tl.constexpr,
):
    """Grid (tiles of QUERIES queries, heads): a program reads all keys that its queries see, once.

    Blocks of keys that all its queries see come first, without a mask. The last tiles start first,
    because under a causal mask they have the most keys and would otherwise finish last.
    """
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    segment, tile = _segment_of_tile(cu_q_ptr, num_segments, number, QUERIES)
    first_q, num_q = segment_bounds(cu_q_ptr, segment)
    first_k, num_k = segment_bounds(cu_k_ptr, segment)
    begin = tile * QUERIES
    if begin >= num_q:
        return
    query = begin + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    d = tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    k_ptr += head // GROUP * stride_kh
    v_ptr += head // GROUP * stride_vh
    q_row = (first_q + query).to(tl.int64)[:, None]
    q_mask = (query < num_q)[:, None]
    if D < WIDTH:
        q_mask = q_mask & (d < D)[None, :]
    q_at = q_ptr + q_row * stride_qt + head * stride_qh + d[None, :]
    q = dot_operand(tl.load(q_at, mask=q_mask, other=0.0))

    offset = num_k - num_q  # causal: query i sees the keys up to i + offset
    end, seen_by_all = num_k, num_k
    if CAUSAL:
        end = tl.maximum(tl.minimum(num_k, begin + QUERIES + offset), 0)
        seen_by_all = tl.maximum(tl.minimum(num_k, begin + offset + 1), 0)
    unmasked = seen_by_all // KEYS * KEYS
    m_i, l_i, acc = init_softmax_state(QUERIES, WIDTH)
    everything = tl.full([KEYS], True, tl.int1)
    for start in range(0, unmasked, KEYS):
        m_i, l_i, acc = online_softmax_step(
            q,
            m_i,
            l_i,
            acc,
            k_ptr,
            v_ptr,
            index_ptr,
            first_k + start + key,
            everything,
            everything[None, :],
            stride_kt,
            stride_vt,
            scale,
            D,
            PRECISION,
        )
    for start in range(unmasked, end, KEYS):
        live = start + key < num_k
        seen = live[None, :]
        if CAUSAL:
            seen = seen & ((start + key)[None, :] <= (query + offset)[:, None])
        m_i, l_i, acc = online_softmax_step(
            q,
            m_i,
            l_i,
            acc,
            k_ptr,
            v_ptr,
            index_ptr,
            first_k + start + key,
            live,
            seen,
            stride_kt,
            stride_vt,
            scale,
            D,
            PRECISION,
        )
    out = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
    out_at = out_ptr + (q_row * tl.num_programs(1) + head) * D + d[None, :]
    tl.store(out_at, round_to(out, out_ptr.dtype.element_ty), mask=q_mask)


def _launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    k_index: torch.Tensor | None,
    longest: int,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    num_queries, heads, head_size = q.shape
    segments = len(cu_q) - 1
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if num_queries == 0:
        return out
    q, k, v = map(with_contiguous_rows, (q, k, v))
    tile, smaller = attention_tiles(architecture(q.device), head_size, q.element_size())
    if longest <= smaller.queries or (num_queries // tile.queries + segments) * heads < _WAVE:
        tile = smaller
    if k_index is not None:
        k_index = k_index.contiguous()
    with on_device_of(q):
        _attention_kernel[(num_queries // tile.queries + segments, heads)](
            q,
            k,
            v,
            out,
            cu_q,
            cu_k,
            k_index,
            segments,
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            scale * LOG2E,
            GROUP=heads // k.shape[1],
            CAUSAL=causal,
            D=head_size,
            WIDTH=padded_head(head_size),
            QUERIES=tile.queries,
            KEYS=tile.keys,
            PRECISION=fp32_precision(),
            num_warps=tile.warps,
            num_stages=tile.stages if k_index is None else tile.stages_indexed,
            enable_fp_fusion=True,
        )
    return out


_ragged_attention = register(
    "ragged_attention(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, Tensor? k_index, "
    "int longest, bool causal, float scale) -> Tensor",
    _launch,
    lambda q, *others: q.new_empty(q.shape),
)


# Rows that are read in place, without an index, could go to PyTorch's `varlen_attn`
# (FlashAttention-2) instead of our kernel; bench_attention.py times both. No GPU has decided yet.
_PREFERS_VARLEN = False


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_segments: Ragged,
    k_segments: Ragged,
    scale: float,
) -> torch.Tensor:
    """Causal attention by PyTorch, for fp16 and bf16 on CUDA."""
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later have it

    causal: dict[str, Any] = {"is_causal": True, "window_size": (-1, 0), "enable_gqa": True}
    taken = signature(varlen_attn).parameters  # its releases say it differently
    how = {name: value for name, value in causal.items() if name in taken}
    cuts = q_segments.cu_seqlens, k_segments.cu_seqlens
    longest = q_segments.max_seqlen, k_segments.max_seqlen
    out: Any = varlen_attn(q, k, v, *cuts, *longest, scale=scale, **how)
    return out


def attend_unchecked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_segments: Ragged,
    k_segments: Ragged,
    scale: float,
    k_index: torch.Tensor | None,
    kernel: bool,
) -> torch.Tensor:
    """Causal `ragged_attention` of arguments that are known to be right, and that the kernel takes
    if `kernel`; the dispatcher is asked only while `torch.compile` traces."""
    if not kernel:
        return reference.ragged_attention(
            q, k, v, q_segments, k_segments, scale=scale, k_index=k_index
        )
    if _PREFERS_VARLEN and k_index is None and q.element_size() == 2:
        return _varlen(q, k, v, q_segments, k_segments, scale)
    launch = _ragged_attention if torch.compiler.is_compiling() else _launch
    cu_q, cu_k, longest = q_segments.cu_seqlens, k_segments.cu_seqlens, q_segments.max_seqlen
    return launch(q, k, v, cu_q, cu_k, k_index, longest, True, scale)


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
        q: `[Tq, H, D]` fp32|fp16|bf16|fp64, any strides; the kernel reads them in place if the last
            dimension is contiguous.
        k, v: `[Tk, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv.
        q_segments, k_segments: B sequences each; their lengths may differ and be 0.
        causal: bottom-right causal mask, or none.
        scale: factor on the logits; default D ** -0.5.
        k_index: `[K]` int32|int64 rows of `k` and `v`, 0 ≤ k_index[j] < Tk, not checked on a CUDA
            device. With it `k_segments` are segments of `k_index`, so sequences may share rows.
        impl: "auto" (Triton on CUDA tensors that need no gradient and are within the kernel's
            limits, eager elsewhere) | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[Tq, H, D]` in the dtype of `q`.

    Raises:
        ValueError: a rank, row count, head layout or device that does not fit, or impl="triton" for
            what the kernel cannot do.
        TypeError: a wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> q, k = torch.randn(7, 8, 64), torch.randn(9, 2, 64)
    >>> of_q, of_k = Ragged.from_lengths([3, 4], "cpu"), Ragged.from_lengths([5, 4], "cpu")
    >>> ragged_attention(q, k, k, of_q, of_k).shape
    torch.Size([7, 8, 64])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "q_segments", q_segments)
    check_segments(_OP, "k_segments", k_segments)
    device = q_segments.device
    check_tensor(_OP, "q", q, ndim=3, dtypes=REFERENCE_DTYPES, device=device)
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
    scale = q.shape[2] ** -0.5 if scale is None else scale
    why = why_unsupported_attention(scale, q, k, v)
    if use_triton(_OP, impl, device, why_unsupported=why):
        cu_q, cu_k = q_segments.cu_seqlens, k_segments.cu_seqlens
        return _ragged_attention(q, k, v, cu_q, cu_k, k_index, q_segments.max_seqlen, causal, scale)
    return reference.ragged_attention(
        q, k, v, q_segments, k_segments, causal=causal, scale=scale, k_index=k_index
    )
