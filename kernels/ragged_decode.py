"""Attention of one new query per sequence, each over its own rows of a KV cache.

`out[s, h] = sum_j softmax_j(scale · q[s, h] · k[j, h // group]) v[j, h // group]`, j running over
rows `starts[s] … starts[s] + lengths[s] - 1`. A sequence without rows gives 0.

Two launches, or one. One query cannot fill a GPU, so several programs share a sequence: each reads
the keys and values of one split, for all query heads that share them, and stores its softmax state
(m_i, l_i, acc); the second launch merges the splits in order. Where no sequence has room for a
second split (128 rows; a patched model's caches have more), the first launch stores the result.
Splits depend on the sequence's own length alone, so neither the batch nor the size of the cache
changes a bit of the result. Traffic: keys and values once (per 16 query heads that share them), 8 D
bytes per split and query head. With lengths on the device no launch depends on their values: a CUDA
graph of the call may be replayed with others. Limits: fp32, fp16, bf16 and head sizes up to 256
(fp32: 128), a scale above 0; no backward; "auto" falls back to PyTorch for anything else.

Source: Dao et al., Flash-Decoding (pytorch.org/blog/flash-decoding, 2023), re-derived.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from . import reference
from ._checks import INDEX_DTYPES, REFERENCE_DTYPES, check_heads, check_impl, check_tensor
from ._launch import (
    architecture,
    cdiv,
    fp32_precision,
    on_device_of,
    register,
    tl,
    triton,
    use_triton,
)
from ._online_softmax import (
    LOG2E,
    dot_operand,
    init_softmax_state,
    online_softmax_step,
    round_to,
    why_unsupported_attention,
    with_contiguous_rows,
)
from ._ranges import check_device_ranges, checked_bound, checked_host_ranges, on_device, op_ranges
from ._repeat import Repeat
from ._tiles import DECODE_ROWS, decode_tile, padded_head

_OP = "ragged_decode"
_SPLITS = 64  # of a sequence at most: with 4 key heads, about two programs a multiprocessor
# One warp sums the splits in its registers. Four exchange partial sums through shared memory: a
# 16-way bank conflict and five barriers for every `_MERGED` splits.
_MERGE_OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
_INT32_MAX = 2**31 - 1
_SHARE, _MERGED = 128, 16  # keys of a split are a multiple of 128; splits merged at a time


@triton.jit
def _splits(n, SPLITS: tl.constexpr, SHARE: tl.constexpr):
    """How many keys a split has, and how many splits a sequence of n keys has."""
    share = tl.maximum(tl.cdiv(n, SPLITS * SHARE), 1) * SHARE
    return share, tl.cdiv(n, share)


@triton.jit(do_not_specialize=["longest"])
def _split_kernel(
    # pointers
    q_ptr,
    k_ptr,
    v_ptr,
    lengths_ptr,
    starts_ptr,
    index_ptr,  # None: ranges are rows of the cache itself
    to_ptr,  # WHOLE: the result; else the states of all splits
    # sizes
    longest,
    # strides
    stride_qb,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    # factor on the logits, times log2(e)
    scale,
    # meta
    GROUP: tl.constexpr,  # query heads of a key head
    ROWS: tl.constexpr,  # query heads of a program, padded to what tensor cores take
    PARTS: tl.constexpr,  # programs that share a group
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D padded to a power of 2
    KEYS: tl.constexpr,  # BLOCK_N
    SPLITS: tl.constexpr,
    SHARE: tl.constexpr,
    PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,  # every sequence is one split
):
    """Grid (sequences, key heads x PARTS, splits): a program reads the keys of its split once.

    States are stored as acc of all splits, then m_i of all splits, then l_i of all splits.
    """
    sequence, split = tl.program_id(0), tl.program_id(2)
    n = tl.minimum(tl.load(lengths_ptr + sequence), longest)
    share, splits = _splits(n, SPLITS, SHARE)
    if split >= tl.maximum(splits, 1):  # without keys the first program stores zeros
        return
    first = tl.load(starts_ptr + sequence)
    key_head = (tl.program_id(1) // PARTS).to(tl.int64)
    member = tl.program_id(1) % PARTS * ROWS + tl.arange(0, ROWS)  # of the group of key_head
    head = key_head * GROUP + member
    d = tl.arange(0, WIDTH)
    mask = (member < GROUP)[:, None] & (d < D)[None, :]
    q_at = sequence.to(tl.int64) * stride_qb + head[:, None] * stride_qh + d[None, :]
    q = dot_operand(tl.load(q_ptr + q_at, mask=mask, other=0.0))
    k_ptr += key_head * stride_kh
    v_ptr += key_head * stride_vh

    m_i, l_i, acc = init_softmax_state(ROWS, WIDTH)
    end = tl.minimum((split + 1) * share, n)
    for start in range(split * share, end, KEYS):
        key = start + tl.arange(0, KEYS)
        live = key < end
        m_i, l_i, acc = online_softmax_step(
            q,
            m_i,
            l_i,
            acc,
            k_ptr,
            v_ptr,
            index_ptr,
            first + key,
            live,
            live[None, :],
            stride_kt,
            stride_vt,
            scale,
            D,
            PRECISION,
        )
    heads = (tl.num_programs(1) // PARTS * GROUP).to(tl.int64)
    part = (sequence * heads + head) * tl.num_programs(2) + split
    acc_at = to_ptr + part[:, None] * D + d[None, :]
    if WHOLE:
        out = acc / tl.where(l_i == 0.0, 1.0, l_i)[:, None]
        tl.store(acc_at, round_to(out, to_ptr.dtype.element_ty), mask=mask)
    else:
        parts = tl.num_programs(0) * heads * tl.num_programs(2)
        tl.store(acc_at, acc, mask=mask)
        tl.store(to_ptr + parts * D + part, m_i, mask=member < GROUP)
        tl.store(to_ptr + parts * (D + 1) + part, l_i, mask=member < GROUP)


@triton.jit(do_not_specialize=["longest", "room"])
def _merge_splits_kernel(
    # pointers
    partial_ptr,
    lengths_ptr,
    out_ptr,
    # sizes
    longest,
    room,  # splits that `partial` has memory for, per sequence and head
    # meta
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    MERGED: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARE: tl.constexpr,
):
    """Grid (sequences, heads): a program merges the splits of a query, in order."""
    sequence, heads = tl.program_id(0), tl.num_programs(1).to(tl.int64)
    n = tl.minimum(tl.load(lengths_ptr + sequence), longest)
    _, splits = _splits(n, SPLITS, SHARE)
    row = sequence * heads + tl.program_id(1)
    first, parts = row * room, tl.num_programs(0) * heads * room
    d = tl.arange(0, WIDTH)
    m_i = tl.full((), float("-inf"), tl.float32)
    l_i = tl.zeros((), tl.float32)
    acc = tl.zeros([WIDTH], tl.float32)
    for start in range(0, splits, MERGED):
        split = start + tl.arange(0, MERGED)
        live = split < splits
        part = first + split
        acc_at = partial_ptr + part[:, None] * D + d[None, :]
        acc_split = tl.load(acc_at, mask=live[:, None] & (d < D)[None, :], other=0.0)
        m_split = tl.load(partial_ptr + parts * D + part, mask=live, other=float("-inf"))
        l_split = tl.load(partial_ptr + parts * (D + 1) + part, mask=live, other=0.0)
        m_new = tl.maximum(m_i, tl.max(m_split))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha, beta = tl.exp2(m_i - base), tl.exp2(m_split - base)
        l_i = l_i * alpha + tl.sum(l_split * beta)
        acc = acc * alpha + tl.sum(acc_split * beta[:, None], axis=0)
        m_i = m_new
    out = acc / tl.where(l_i == 0.0, 1.0, l_i)
    tl.store(out_ptr + row * D + d, round_to(out, out_ptr.dtype.element_ty), mask=d < D)


@lru_cache(maxsize=64)
def _settings(
    arch: str, head_size: int, itemsize: int, group: int, indexed: bool
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Programs that share a group, constants of both kernels, launch options of the first."""
    tile, parts = decode_tile(arch, head_size, itemsize), cdiv(group, DECODE_ROWS)
    both = {"D": head_size, "WIDTH": padded_head(head_size), "SPLITS": _SPLITS, "SHARE": _SHARE}
    split: dict[str, Any] = {"GROUP": group, "ROWS": DECODE_ROWS, "PARTS": parts, "KEYS": tile.keys}
    split["PRECISION"] = fp32_precision()
    stages = tile.stages_indexed if indexed else tile.stages
    options = {"num_warps": tile.warps, "num_stages": stages, "enable_fp_fusion": True}
    return parts, both | split, both | {"MERGED": _MERGED}, options


class Decoder:
    """Decodes over ranges that one layer after another reads, each from a cache of its own.

    What the layers have in common is made once: the memory for the states of splits, and with the
    first launch of a kind the launches themselves. Nothing is checked: the arguments are those of
    `ragged_decode` with lengths on the device, and must be right.

    Args:
        lengths, starts: int32 `[B]`, on the device; their values may change between calls.
        longest: host int that no length exceeds.
        k_index: as in `ragged_decode`, contiguous, or None.
    """

    def __init__(
        self, lengths: torch.Tensor, starts: torch.Tensor, longest: int, k_index: Any = None
    ) -> None:
        self._ranges, self._longest, self._index = (lengths, starts), longest, k_index
        self._room = max(1, min(_SPLITS, cdiv(longest, _SHARE)))  # splits of a sequence, at most
        self._ready: dict[Any, tuple[Repeat, Repeat, torch.Tensor | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": {}}  # a copy of a cache asks for its own

    def __call__(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """`[B, H, D]` in the dtype of q."""
        if torch.compiler.is_compiling():
            ranges = *self._ranges, (), self._index, self._longest
            return _ragged_decode(q, k_cache, v_cache, *ranges, scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if not len(q):
            return out
        q, k_cache, v_cache = map(with_contiguous_rows, (q, k_cache, v_cache))
        strides = (*q.stride()[:2], *k_cache.stride()[:2], *v_cache.stride()[:2])
        known = q.shape, k_cache.shape[1], q.dtype, strides
        with on_device_of(q):
            if known not in self._ready:
                self._ready[known] = self._prepare(q, k_cache.shape[1], strides)
            split, merge, states = self._ready[known]
            to = out if states is None else states
            tensors = q, k_cache, v_cache, *self._ranges, self._index, to
            split(*tensors, self._longest, *strides, scale * LOG2E)
            if states is not None:
                merge(states, self._ranges[0], out, self._longest, self._room)
        return out

    def _prepare(
        self, q: torch.Tensor, key_heads: int, strides: tuple[int, ...]
    ) -> tuple[Repeat, Repeat, torch.Tensor | None]:
        """The launches of both kernels, and memory for the states in between; None for one split,
        which the first launch finishes."""
        room, index = self._room, self._index
        kind = None if index is None else index.dtype, self._longest > _INT32_MAX
        split, merge = _launches(q.device, q.shape, key_heads, q.dtype, strides, room, *kind)
        if room == 1:
            return split, merge, None
        size = q.shape[0] * q.shape[1] * room * (q.shape[2] + 2)
        return split, merge, torch.empty(size, dtype=torch.float32, device=q.device)


@lru_cache(maxsize=256)
def _launches(
    device: torch.device,
    shape: torch.Size,
    key_heads: int,
    dtype: torch.dtype,
    strides: tuple[int, ...],
    room: int,
    index: torch.dtype | None,
    wide: bool,
) -> tuple[Repeat, Repeat]:
    """Both kernels, for calls that differ in addresses alone. The key holds all that Triton may
    specialise on; `strides` and the last two serve only for that."""
    sequences, heads, head_size = shape
    kind = head_size, dtype.itemsize, heads // key_heads, index is not None
    parts, of_split, of_merge, options = _settings(architecture(device), *kind)
    grid = sequences, key_heads * parts, room
    split = Repeat(_split_kernel, grid, of_split | {"WHOLE": room == 1}, options)
    return split, Repeat(_merge_splits_kernel, (sequences, heads, 1), of_merge, _MERGE_OPTIONS)


def _launch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor | None,
    starts: torch.Tensor | None,
    host_ranges: Sequence[int],
    k_index: torch.Tensor | None,
    longest: int,
    scale: float,
) -> torch.Tensor:
    if lengths is None or starts is None:
        lengths, starts = on_device(tuple(host_ranges), q.device)
    if k_index is not None:
        k_index = k_index.contiguous()
    return Decoder(lengths, starts, longest, k_index)(q, k_cache, v_cache, scale)


_ragged_decode = register(
    "ragged_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? lengths, Tensor? starts, "
    "int[] host_ranges, Tensor? k_index, SymInt longest, float scale) -> Tensor",
    _launch,
    lambda q, *others: q.new_empty(q.shape),
)


def ragged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor,
    *,
    starts: Sequence[int] | torch.Tensor | None = None,
    max_length: int | None = None,
    scale: float | None = None,
    k_index: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Attend from one query per sequence to that sequence's rows of a KV cache.

    Args:
        q: `[B, H, D]` fp32|fp16|bf16|fp64, one query per sequence.
        k_cache, v_cache: `[R, Hkv, D]`, dtype and device of `q`; H is a multiple of Hkv. Rows that
            are not a sequence's own never enter its result, whatever they hold.
        lengths: rows of each sequence, ≥ 0: B host ints, or an int32 `[B]` tensor on the device of
            `q`, whose values are neither read back nor checked. Host ints are copied to the device
            without a wait, and calls with the same ints share one copy; a CUDA graph needs tensors.
        starts: first row of each sequence, in the same form; default the prefix sums of `lengths`.
        max_length: host int ≥ 0 that no length exceeds; default the number of rows. With lengths
            on the device it bounds the work (programs of the kernel, rows that the PyTorch fallback
            copies for each sequence), and rows of a sequence past it are ignored.
        scale: factor on the logits; default D ** -0.5.
        k_index: `[K]` int32|int64 rows of the caches; with it sequences are ranges of `k_index`.
        impl: "auto" (Triton on CUDA tensors that need no gradient and are within the kernel's
            limits, eager elsewhere) | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[B, H, D]` in the dtype of `q`.

    Raises:
        ValueError: a rank, range, count, head layout or device that does not fit, or impl="triton"
            for what the kernel cannot do.
        TypeError: a wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> q, cache = torch.randn(2, 8, 64), torch.randn(20, 2, 64)
    >>> ragged_decode(q, cache, cache, [5, 9], starts=[0, 10]).shape
    torch.Size([2, 8, 64])
    """
    check_impl(_OP, impl)
    check_tensor(_OP, "q", q, ndim=3, dtypes=REFERENCE_DTYPES)
    check_tensor(_OP, "k_cache", k_cache, ndim=3, dtypes=(q.dtype,), device=q.device)
    check_tensor(_OP, "v_cache", v_cache, ndim=3, dtypes=(q.dtype,), device=q.device)
    check_heads(_OP, q, k_cache, v_cache)
    rows = len(k_cache)
    if k_index is not None:
        check_tensor(_OP, "k_index", k_index, ndim=1, dtypes=INDEX_DTYPES, device=q.device)
        rows = len(k_index)
    longest = checked_bound(_OP, rows, max_length)
    if isinstance(lengths, torch.Tensor):
        check_device_ranges(_OP, q, lengths, starts)
    else:
        lengths, starts = checked_host_ranges(_OP, len(q), rows, lengths, starts, longest)
        longest = max(lengths, default=0)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    why = why_unsupported_attention(scale, q, k_cache, v_cache)
    if use_triton(_OP, impl, q.device, why_unsupported=why):
        ranges = op_ranges(lengths, starts)
        return _ragged_decode(q, k_cache, v_cache, *ranges, k_index, longest, scale)
    return reference.ragged_decode(
        q,
        k_cache,
        v_cache,
        lengths,
        starts=starts,
        max_length=longest,
        scale=scale,
        k_index=k_index,
    )
