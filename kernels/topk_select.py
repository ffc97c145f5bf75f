"""Pick the k best-scored rows of each segment, all segments in one launch.

`out = ascending({i : #{j : s_j > s_i, or s_j = s_i and j < i} < k})` per segment. Unlike
`torch.topk` the answer is fully determined: ties go to the lowest row, -0.0 equals +0.0, and NaN
ranks below -inf, so a broken score is never preferred. One program per segment keeps its scores in
registers. Traffic: the scores once in, k row numbers out; the time is the launch and the search.
With `gather=` the picked rows of other tensors come along (`_gather_picks.py`). Limits: 16384 rows
a segment and fp32, fp16, bf16; "auto" takes the twin for what is beyond.
"""

from collections.abc import Sequence
from typing import overload

import torch

from . import _gather_picks, reference
from ._checks import (
    check_covers,
    check_floating,
    check_impl,
    check_segments,
    check_tensor,
    checked_gather,
    checked_keep,
    foreign,
)
from ._gather_picks import copy_picks, my_share
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import (
    COLUMNS,
    kth_largest,
    positions,
    segment_bounds,
    store_picks,
    tile,
    unable,
)
from .gather import gather_rows
from .gather import unable as unable_to_copy
from .ragged import Ragged

_OP = "topk_select"

# Per dtype: bits of a key, and the bits of +infinity, both at the top of a 32-bit word.
_BITS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}
_INFINITY = {
    torch.float32: 0x7F800000,
    torch.float16: 0x7C000000,
    torch.bfloat16: 0x7F800000,
}


@triton.jit
def _keys(bits, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Float bits (int32, at the top) as unsigned keys that sort like the floats.

    Positive numbers get their top bit set, negative ones all their BITS flipped. No bit below
    them may be flipped: a key ending in ones would beat the threshold it ties with.
    """
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude == 0, 0, bits)  # -0.0 is +0.0
    flipped: tl.constexpr = -1 << (32 - BITS)
    key = (bits ^ ((bits >> 31) & flipped)) ^ tl.where(bits < 0, 0, -2147483648)
    return tl.where(magnitude > INFINITY, 0, key).to(tl.uint32, bitcast=True)  # NaN: below -inf


@triton.jit
def _best(
    scores_ptr,
    first,
    n,
    k,
    BITS: tl.constexpr,
    INFINITY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The scores of a segment above the threshold, and those equal to it."""
    position = positions(ROWS, COLUMNS)
    live = position < n
    # As bits: 16-bit floats sort by them too, and the interpreter converts bf16 wrongly.
    word = tl.pointer_type(tl.int32 if BITS == 32 else tl.int16)
    source = scores_ptr.to(word, bitcast=True) + first + position
    bits = tl.load(source, mask=live, other=0).to(tl.int32)
    key = tl.where(live, _keys(bits << (32 - BITS), BITS, INFINITY), tl.full((), 0, tl.uint32))
    threshold, _ = kth_largest(key, k, BITS)
    return (key > threshold) & live, (key == threshold) & live


@triton.jit
def _topk_select_kernel(
    # pointers
    scores_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    out_ptr,
    # meta
    BITS: tl.constexpr,
    INFINITY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (segments): a program reads the scores of its segment once and stores its picks."""
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    above, equal = _best(scores_ptr, first, n, k, BITS, INFINITY, ROWS, COLUMNS)
    store_picks(out_ptr + first_out, first + positions(ROWS, COLUMNS), above, equal, k)


@triton.jit(do_not_specialize=["blocks", "strides"])
def _topk_gather_kernel(
    # pointers
    scores_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    index_ptr,
    x_ptrs,
    out_ptrs,
    # sizes
    blocks,  # of picks, of the segment that keeps most
    # strides between rows, one per tensor
    strides,
    # meta
    BITS: tl.constexpr,
    INFINITY: tl.constexpr,
    LAYOUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PICKS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Grid (segments x blocks, column spans): a program selects, and copies a block of picks."""
    _, first, n, first_out, k, pick = my_share(cu_seqlens_ptr, cu_keep_ptr, blocks, PICKS)
    if pick >= k:
        return
    above, equal = _best(scores_ptr, first, n, k, BITS, INFINITY, ROWS, COLUMNS)
    copy_picks(
        index_ptr,
        x_ptrs,
        out_ptrs,
        strides,
        first,
        first_out,
        k,
        pick,
        above,
        equal,
        LAYOUTS,
        ROWS,
        COLUMNS,
        PICKS,
        SPAN,
    )


def _launch(
    scores: torch.Tensor, cu_seqlens: torch.Tensor, keep: Sequence[int], longest: int
) -> torch.Tensor:
    kept = Ragged.from_lengths(keep, scores.device)
    out = torch.empty(kept.total, dtype=torch.int32, device=scores.device)
    if kept.total:
        rows, warps = tile(longest)
        with on_device_of(scores):
            _topk_select_kernel[(len(kept),)](
                scores.contiguous(),
                cu_seqlens,
                kept.cu_seqlens,
                out,
                BITS=_BITS[scores.dtype],
                INFINITY=_INFINITY[scores.dtype],
                ROWS=rows,
                COLUMNS=COLUMNS,
                num_warps=warps,
                enable_fp_fusion=True,
            )
    return out


def _fake(
    scores: torch.Tensor, cu_seqlens: torch.Tensor, keep: Sequence[int], longest: int
) -> torch.Tensor:
    return scores.new_empty(sum(keep), dtype=torch.int32)


_topk_select = register(
    "topk_select(Tensor scores, Tensor cu_seqlens, int[] keep, int longest) -> Tensor",
    _launch,
    _fake,
)


def _launch_gather(
    scores: torch.Tensor,
    cu_seqlens: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    tensors: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    meta = {"BITS": _BITS[scores.dtype], "INFINITY": _INFINITY[scores.dtype]}
    return _gather_picks.launch(
        _topk_gather_kernel, [scores.contiguous()], cu_seqlens, keep, longest, tensors, **meta
    )


def _fake_gather(
    scores: torch.Tensor,
    cu_seqlens: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    tensors: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return _gather_picks.fake(keep, cu_seqlens, tensors)


_topk_gather = register(
    "topk_select_gather(Tensor scores, Tensor cu_seqlens, int[] keep, int longest, "
    "Tensor[] tensors) -> (Tensor, Tensor[])",
    _launch_gather,
    _fake_gather,
)


@overload
def topk_select(
    scores: torch.Tensor, segments: Ragged, keep: Sequence[int], *, impl: str = "auto"
) -> torch.Tensor: ...


@overload
def topk_select(
    scores: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    gather: Sequence[torch.Tensor],
    impl: str = "auto",
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]: ...


def topk_select(
    scores: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    gather: Sequence[torch.Tensor] = (),
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Pick the `keep[s]` rows with the largest scores in each segment.

    Args:
        scores: `[T]` of any floating dtype, compared exactly.
        segments: the cut of the T rows.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        gather: tensors `[T, ...]` to gather the picked rows of, as `gather_rows` does: in the same
            launch where no segment has more than 4096 rows, else in a second one.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending (by row, not by score). With `gather` a pair of
        these and a tuple of the picked rows, one contiguous `[sum(keep), ...]` per tensor.

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit, or what the kernel
            cannot do.
        TypeError: scores that are not floating point, or another wrong type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> topk_select(torch.tensor([1., 3., 3., 0.]), Ragged.from_lengths([3, 1], "cpu"), [1, 1])
    tensor([1, 3], dtype=torch.int32)
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "scores", scores, ndim=1, device=segments.device)
    check_floating(_OP, "scores", scores)
    check_covers(_OP, "segments", segments, "scores", len(scores))
    keep = checked_keep(_OP, segments, keep)
    gather = checked_gather(_OP, gather, segments)
    longest = segments.max_seqlen
    too_long = unable(longest, segments.device)
    cannot = too_long or foreign(scores.dtype) or unable_to_copy(gather)
    if not use_triton(_OP, impl, scores.device, unable=cannot, silent=not too_long):
        return reference.topk_select(scores, segments, keep, gather=gather)
    if _gather_picks.fits(longest, gather):
        index, rows = _topk_gather(scores, segments.cu_seqlens, keep, longest, gather)
        return index, tuple(rows)
    index = _topk_select(scores, segments.cu_seqlens, keep, longest)
    return (index, gather_rows(index, *gather, impl=impl)) if gather else index
