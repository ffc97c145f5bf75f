"""Pick the k best-scored rows of each segment, all segments in one launch.

`out = ascending({i : #{j : s_j > s_i, or s_j = s_i and j < i} < k})` per segment. Unlike
`torch.topk` the answer is fully determined: ties go to the lowest row, -0.0 equals +0.0, and NaN
ranks below -inf, so a broken score is never preferred. One program per segment keeps its scores in
registers. Traffic: the scores once in, k row numbers out; the time is the launch and the search.
Limits: 16384 rows a segment and fp32, fp16, bf16; "auto" falls back to PyTorch for anything else.
"""

from collections.abc import Sequence

import torch

from . import _select_numpy, reference
from ._checks import (
    check_covers,
    check_floating,
    check_impl,
    check_segments,
    check_tensor,
    checked_keep,
    why_unsupported_dtype,
)
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import (
    COLUMNS,
    kth_largest,
    positions,
    segment_bounds,
    store_picks,
    tile,
    why_unsupported_length,
)
from .ragged import Ragged

_OP = "topk_select"

# Per dtype: bits of a sort key, and the bits of +infinity, both in the high bits of a 32-bit word.
_BITS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}
_INFINITY = {
    torch.float32: 0x7F800000,
    torch.float16: 0x7C000000,
    torch.bfloat16: 0x7F800000,
}


@triton.jit
def _sort_keys(bits, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """The bits of floats, in the high bits of int32, as uint32 keys in the order of the floats.

    Positive numbers get their highest bit set; of negative ones all BITS are flipped, and no bit
    below them, since a key that ends in ones would be above a threshold that it should equal.
    """
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude == 0, 0, bits)  # -0.0 is +0.0
    flipped: tl.constexpr = -1 << (32 - BITS)
    key = (bits ^ ((bits >> 31) & flipped)) ^ tl.where(bits < 0, 0, -2147483648)
    return tl.where(magnitude > INFINITY, 0, key).to(tl.uint32, bitcast=True)  # NaN: below -inf


@triton.jit
def _selected(
    scores_ptr,
    first,
    n,
    k,
    BITS: tl.constexpr,
    INFINITY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Masks of the scores of a segment above the threshold, and of those equal to it."""
    position = positions(ROWS, COLUMNS)
    live = position < n
    # Read as integers: the sort keys need only bits, and the interpreter converts bf16 wrongly.
    word = tl.pointer_type(tl.int32 if BITS == 32 else tl.int16)
    source = scores_ptr.to(word, bitcast=True) + first + position
    bits = tl.load(source, mask=live, other=0).to(tl.int32)
    key = tl.where(live, _sort_keys(bits << (32 - BITS), BITS, INFINITY), tl.full((), 0, tl.uint32))
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
    above, equal = _selected(scores_ptr, first, n, k, BITS, INFINITY, ROWS, COLUMNS)
    store_picks(out_ptr + first_out, first + positions(ROWS, COLUMNS), above, equal, k)


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


_topk_select = register(
    "topk_select(Tensor scores, Tensor cu_seqlens, int[] keep, int longest) -> Tensor",
    _launch,
    lambda scores, cu_seqlens, keep, longest: cu_seqlens.new_empty(sum(keep)),
)


def topk_select(
    scores: torch.Tensor, segments: Ragged, keep: Sequence[int], *, impl: str = "auto"
) -> torch.Tensor:
    """Pick the `keep[s]` rows with the largest scores in each segment.

    Args:
        scores: `[T]` of any floating dtype, compared exactly.
        segments: which of the T rows form which segment.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending (by row, not by score).

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit, or impl="triton" for
            what the kernel cannot do.
        TypeError: scores that are not floating point, or another wrong type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> topk_select(torch.tensor([1., 3., 3., 0.]), Ragged.from_lengths([3, 1], "cpu"), [1, 1])
    tensor([1, 3], dtype=torch.int32)
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "scores", scores, ndim=1, device=segments.device)
    check_floating(_OP, "scores", scores)
    check_covers(_OP, "segments", segments, "scores", scores.shape[0])
    keep = checked_keep(_OP, segments, keep)
    longest = segments.max_seqlen
    too_long = why_unsupported_length(longest, segments.device)
    why = too_long or why_unsupported_dtype(scores.dtype)
    if use_triton(_OP, impl, scores.device, why_unsupported=why, silent=not too_long):
        return _topk_select(scores, segments.cu_seqlens, keep, longest)
    if _select_numpy.can_read(scores, segments.cu_seqlens):
        return _select_numpy.topk_select(scores, segments, keep)
    return reference.topk_select(scores, segments, keep)
