"""Pick k rows of each segment that together cover all its rows (SCOPE's greedy weighted coverage).

A row is covered as well as its largest cosine to a picked row, at least 0. Repeatedly add the row
whose weight times the coverage that it adds, summed over the segment, is largest.

Four launches: two for the distances (`_distances.py`), one for all gains before the first pick,
then the picking, one program per segment. Gains only sink, so a gain computed at an earlier step is
a bound ("lazy greedy", Minoux 1978), and most rows need not be looked at again in most steps.
Traffic: the features, 4 n^2 bytes of distances out and in again, and 4 n bytes for each row that is
evaluated or picked. Segments are processed in groups that need at most 1 GiB of distances. Limits:
8192 rows a segment, features in fp32, fp16, bf16; "auto" falls back to PyTorch for anything else.

Source: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs" (NeurIPS
2025, arXiv 2510.24214), re-derived from the paper. Deliberate differences: cosines are in fp32
whatever the input dtype, a gain of rounding counts as nothing, and nearly equal gains as equal, so
that ties are the same everywhere; k distinct rows are picked even where nothing is left to cover.
"""

from collections.abc import Sequence

import torch

from . import reference
from ._checks import (
    check_covers,
    check_floating,
    check_impl,
    check_segments,
    check_tensor,
    checked_keep,
    why_unsupported_dtype,
)
from ._coverage import NOTHING
from ._distances import NOT_FINITE as NOT_FINITE_BITS
from ._distances import PICKED as PICKED_BITS
from ._distances import distance_matrices, groups, matrix_bytes, norms, padded_columns
from ._gain_bits import NEARLY, first, rank_of
from ._greedy_rounds import store_picked
from ._launch import cdiv, on_device_of, register, tl, triton, use_triton
from ._threshold import COLUMNS, TILES, segment_bounds, tile, why_unsupported_length
from .ragged import Ragged

_OP = "coverage_select"

# A program holds two numbers of each row. Those of 16384 rows spill, with 16 warps and with 32.
MAX_LENGTH = 8192
_TILES = (*TILES[:2], (MAX_LENGTH, 16))

_SUM_ROWS, _SUM_BLOCK = 8, 256  # rows of a program that makes the first sums, and columns at a time


@triton.jit
def _worth(sums, rank, n, NOTHING: tl.constexpr):
    """The bits of a gain, which order it among others; those of rows without rank are below 0."""
    gain = tl.where(sums > NOTHING * n, rank * sums, 0.0)
    return tl.where(rank >= 0.0, gain.to(tl.int32, bitcast=True), NOT_FINITE_BITS)


@triton.jit(do_not_specialize=["blocks"])
def _first_gains_kernel(
    # pointers
    matrix_ptr,
    inverse_ptr,
    weights_ptr,
    bound_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    # sizes
    blocks,  # of ROWS rows, in the longest segment
    # meta
    NOTHING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (segments x blocks): store the gains of ROWS rows before any pick, as `_worth` has them.

    It also stores what is known of the matrix: rows with a direction are at distance 0 from
    themselves.
    """
    segment = tl.program_id(0) // blocks
    begin = tl.program_id(0) % blocks * ROWS
    first_row, n = segment_bounds(cu_seqlens_ptr, segment)
    _, k = segment_bounds(cu_keep_ptr, segment)
    if (k == 0) | (begin >= n):
        return
    width = padded_columns(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)
    row = begin + tl.arange(0, ROWS)
    live = row < n
    line = row.to(tl.int64) * width
    inverse = tl.load(inverse_ptr + first_row + row, mask=live, other=0.0)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        source = matrix + line[:, None] + column[None, :]
        distance = tl.load(source, mask=live[:, None] & (column < width)[None, :], other=0.0)
        others = (column < n)[None, :] & (column[None, :] != row[:, None])
        total += tl.maximum(1.0 - tl.where(others, distance, 1.0), 0.0)
    directed = inverse > 0.0
    sums = tl.sum(total, axis=1) + tl.where(directed, 1.0, 0.0)
    weight = tl.load(weights_ptr + first_row + row, mask=live, other=0.0)
    worth = _worth(sums, rank_of(weight, inverse), n, NOTHING)
    tl.debug_barrier()  # other threads read the distances that are overwritten now
    tl.store(matrix + line + row, 0.0, mask=live & directed)
    tl.store(bound_ptr + first_row + row, worth, mask=live)


@triton.jit
def _coverage_kernel(
    # pointers
    matrix_ptr,
    inverse_ptr,
    weights_ptr,
    bound_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    index_ptr,
    order_ptr,
    # meta
    NOTHING: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (segments): a program picks the rows of its segment one after another.

    It holds two numbers of each row in registers: its distance to the nearest picked row, and the
    bits of its gain when that was computed last. These are inverted, and so below 0, once the row
    has been evaluated in this step. Each turn reads one line of the matrix, as in
    `diversity_select`, either to evaluate its row or to pick it.
    """
    segment = tl.program_id(0)
    first_row, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    position = tl.arange(0, ROWS * COLUMNS)
    live = position < n
    width = padded_columns(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)

    bound = tl.load(bound_ptr + first_row + position, mask=live & (k > 0), other=PICKED_BITS)
    cover = tl.full([ROWS * COLUMNS], 1.0, tl.float32)
    best = tl.full((), -1, tl.int32)  # the largest gain of this step so far
    step = tl.full((), 0, tl.int32)
    while step < k:
        # A row with a larger bound is evaluated next. When there is none, `best` is the largest
        # gain, and the lowest row with nearly as large a bound is picked, if that is its gain.
        top = tl.max(bound)
        least = (best.to(tl.float32, bitcast=True) * NEARLY).to(tl.int32, bitcast=True)
        value = bound ^ (bound >> 31)
        near = (value >= least) & (bound > NOT_FINITE_BITS)
        next_one = tl.where((best < 0) | (top > best), bound == top, near)
        row = first(next_one, 2 * position + (bound < 0).to(tl.int32))
        known, row = row & 1, row >> 1
        line = matrix + row.to(tl.int64) * width + position
        distance = tl.load(line, mask=position < width, other=0.0)
        distance = tl.where(live, distance, float("inf"))
        if known:
            tl.store(order_ptr + first_out + step, first_row + row)
            tl.store(bound_ptr + first_row + row, PICKED_BITS)
            cover = tl.minimum(cover, distance)
            bound = tl.where(bound > NOT_FINITE_BITS, value, bound)
            bound = tl.where(position == row, PICKED_BITS, bound)
            best = tl.full((), -1, tl.int32)
            step += 1
        else:
            sums = tl.sum(tl.maximum(cover - distance, 0.0))
            weight = tl.load(weights_ptr + first_row + row)
            inverse = tl.load(inverse_ptr + first_row + row)
            worth = _worth(sums, rank_of(weight, inverse), n, NOTHING)
            bound = tl.where(position == row, ~worth, bound)
            best = tl.maximum(best, worth)
    store_picked(index_ptr + first_out, bound_ptr, first_row, n, k, ROWS, COLUMNS)


def _launch(
    features: torch.Tensor,
    weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = Ragged.from_lengths(keep, features.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=features.device)
    order = torch.empty_like(index)
    if kept.total:
        with on_device_of(features):
            x, inverse, bound = norms(features)
            rows = x, inverse, weights.float().contiguous(), bound
            tiles = [tile(n, _TILES) for n in lengths]  # the order of sums depends on the tile
            for group in groups([matrix_bytes(n) for n in lengths], tiles):
                segments = cu_seqlens[group.start :], kept.cu_seqlens[group.start :]
                _pick_group(*rows, *segments, lengths[group], index, order)
    return index, order


def _pick_group(
    x: torch.Tensor,
    inverse: torch.Tensor,
    weights: torch.Tensor,
    bound: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    lengths: Sequence[int],
    index: torch.Tensor,
    order: torch.Tensor,
) -> None:
    """Pick rows of one group of segments; its matrices are freed before the next group's exist."""
    matrix, cu_matrix = distance_matrices(x, inverse, bound, cu_seqlens, cu_keep, lengths)
    tensors = matrix, inverse, weights, bound, cu_seqlens, cu_keep, cu_matrix
    blocks = cdiv(max(lengths), _SUM_ROWS)
    _first_gains_kernel[(len(lengths) * blocks,)](
        *tensors,
        blocks,
        NOTHING=NOTHING,
        ROWS=_SUM_ROWS,
        BLOCK=_SUM_BLOCK,
        enable_fp_fusion=False,
    )
    rows, warps = tile(max(lengths), _TILES)
    _coverage_kernel[(len(lengths),)](
        *tensors,
        index,
        order,
        NOTHING=NOTHING,
        ROWS=rows,
        COLUMNS=COLUMNS,
        num_warps=warps,
        enable_fp_fusion=False,
    )


def _fake(
    features: torch.Tensor,
    weights: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    index = features.new_empty(sum(keep), dtype=torch.int32)
    return index, torch.empty_like(index)


_coverage_select = register(
    "coverage_select(Tensor features, Tensor weights, Tensor cu_seqlens, int[] lengths, int[] keep)"
    " -> (Tensor, Tensor)",
    _launch,
    _fake,
)


def coverage_select(
    features: torch.Tensor,
    weights: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick `keep[s]` rows of each segment so that all its rows have a similar one among them.

    Memory beside features and result: the kernel makes at most 1 GiB of fp32 distances at a time,
    and at least those of one segment. So does the PyTorch fallback, with the unit vectors: 256 MiB,
    or for a longer segment 6 n^2 + 5 n D bytes (10 n^2 on a GPU).

    Args:
        features: `[T, D]` of any floating dtype; only directions matter. A zero row, or one whose
            norm is below 2^-63, has cosine 0 to all rows. A row whose squared norm is not finite in
            fp32 is picked after all finite rows (lowest first), covers nothing and is not covered.
        weights: `[T]` of any floating dtype, w ≥ 0 in fp32; below 2^-100 it counts as 0. Rows whose
            weight is NaN or at least 2^100 in magnitude are picked with those that are not finite,
            but count among the rows to cover.
        segments: which of the T rows form which segment.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        return_order: also return the rows in the order they were picked.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending; with `return_order` a pair of these and the same
        rows in pick order, segment after segment. Gains within 2^-17 of the largest are ties, which
        go to the lowest row; where no row has a gain, the lowest rows left are picked.

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit, or impl="triton" for
            what the kernel cannot do.
        TypeError: features or weights that are not floating point, or another wrong type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> coverage_select(torch.eye(5), torch.ones(5), Ragged.from_lengths([5], "cpu"), [2]).shape
    torch.Size([2])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "features", features, ndim=2, device=segments.device)
    check_floating(_OP, "features", features)
    check_covers(_OP, "segments", segments, "features", len(features))
    check_tensor(_OP, "weights", weights, ndim=1, device=segments.device)
    check_floating(_OP, "weights", weights)
    check_covers(_OP, "segments", segments, "weights", len(weights))
    keep = checked_keep(_OP, segments, keep)
    too_long = why_unsupported_length(segments.max_seqlen, most=MAX_LENGTH)
    why = too_long or why_unsupported_dtype(features.dtype)
    if use_triton(_OP, impl, features.device, why_unsupported=why, silent=not too_long):
        picks = _coverage_select(features, weights, segments.cu_seqlens, segments.lengths, keep)
        return picks if return_order else picks[0]
    return reference.coverage_select(features, weights, segments, keep, return_order=return_order)
