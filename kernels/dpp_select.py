"""Pick k rows of each segment by quality and diversity: a determinantal point process, greedily.

With L_ij = q_i q_j cos(x_i, x_j): repeatedly add the row by which the determinant of L, restricted
to the rows picked, grows most. CDPruner picks visual tokens so, with their relevance to the prompt
as q.

Three launches: two for the distances (`_distances.py`), then the picking, one program per segment,
by the recursion in `_determinant.py`.
Traffic: the features, 4 n^2 bytes of distances out, and 4 n k of them in again, as in
`diversity_select`; and 4 n k bytes of vectors out, of which step t reads t: 2 n k^2 in all.
Segments are processed in groups that need at most 1 GiB of distances and vectors. Limits: 4096
rows a segment and features in fp32, fp16, bf16; "auto" falls back to PyTorch for anything else.

Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process" (NeurIPS 2018),
algorithm 1, and Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for
Token Pruning in MLLMs" (arXiv 2506.10967), re-derived. Deliberate differences: the factorisation is
of the cosines alone, in fp32 whatever the input dtype; what is left of a row after its rounding
counts as nothing, and nearly equal gains as equal, so that ties are the same everywhere; k distinct
rows are picked even where the determinant is 0.
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
from ._determinant import SPENT
from ._distances import PICKED as MARK
from ._distances import (
    distance_matrices,
    groups,
    matrix_bytes,
    norms,
    padded_columns,
    padded_columns_on_host,
)
from ._gain_bits import NEARLY, PICKED, first, rank_of
from ._greedy_rounds import store_picked
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import COLUMNS, segment_bounds, tile, why_unsupported_length
from .ragged import Ragged

_OP = "dpp_select"

MAX_LENGTH = 4096  # longer segments take k n / 2 numbers of vectors a step from one program

_LINES = 4  # vectors read at a time, so that their loads overlap


@triton.jit
def _determinant_kernel(
    # pointers
    matrix_ptr,
    inverse_ptr,
    quality_ptr,
    marks_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    cu_vectors_ptr,
    vectors_ptr,
    index_ptr,
    order_ptr,
    # meta
    SPENT: tl.constexpr,
    LINES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (segments): a program picks the rows of its segment one after another.

    It holds each row's residual in registers, and reads one line of the matrix and all vectors so
    far per step, 16 bytes at a time, as in `diversity_select`.
    """
    segment = tl.program_id(0)
    first_row, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    position = tl.arange(0, ROWS * COLUMNS)
    live = position < n
    width = padded_columns(n)
    inside = position < width
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)
    vectors = vectors_ptr + tl.multiple_of(tl.load(cu_vectors_ptr + segment), 16).to(tl.int64)

    inverse = tl.load(inverse_ptr + first_row + position, mask=live, other=0.0)
    quality = tl.load(quality_ptr + first_row + position, mask=live, other=0.0)
    rank = tl.where(live, rank_of(quality * quality, inverse), PICKED)
    residual = tl.where(inverse > 0.0, 1.0, 0.0)
    step = tl.full((), 0, tl.int32)
    while step < k:
        gain = tl.where(rank > 0.0, rank * residual, rank)
        best = tl.max(gain)
        # A gain below zero is nearly as large as itself.
        pick = first(gain >= tl.minimum(best, best * NEARLY), position)
        tl.store(order_ptr + first_out + step, first_row + pick)
        tl.store(marks_ptr + first_row + pick, MARK)
        rank = tl.where(position == pick, PICKED, rank)
        if best > 0.0:  # else no row has a gain any more
            left = tl.max(tl.where(position == pick, residual, 0.0))
            line = matrix + pick.to(tl.int64) * width + position
            new = 1.0 - tl.where(live, tl.load(line, mask=inside, other=1.0), 1.0)
            tl.debug_barrier()  # the picked row's numbers were stored by another thread
            vector = vectors
            for begin in range(0, step, LINES):
                for i in tl.static_range(LINES):
                    there = begin + i < step
                    own = tl.load(vector + pick, mask=there, other=0.0)
                    new -= own * tl.load(vector + position, mask=inside & there, other=0.0)
                    vector += width
            # No number of rows past the end, or not finite, gets into the vectors.
            new = tl.where(residual > 0.0, new / tl.sqrt_rn(left), 0.0)
            to = vectors + step.to(tl.int64) * width + position
            tl.store(to, new, mask=inside)
            residual -= new * new
            residual = tl.where(residual > SPENT, residual, 0.0)
        step += 1
    store_picked(index_ptr + first_out, marks_ptr, first_row, n, k, ROWS, COLUMNS)


def _launch(
    features: torch.Tensor,
    quality: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = Ragged.from_lengths(keep, features.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=features.device)
    order = torch.empty_like(index)
    if kept.total:
        with on_device_of(features):
            x, inverse, marks = norms(features)
            rows = x, inverse, quality.float().contiguous(), marks
            held = zip(map(matrix_bytes, lengths), _sizes(lengths, keep), strict=True)
            for group in groups([matrix + 4 * size for matrix, size in held], [0] * len(keep)):
                segments = cu_seqlens[group.start :], kept.cu_seqlens[group.start :]
                _pick_group(*rows, *segments, lengths[group], keep[group], index, order)
    return index, order


def _sizes(lengths: Sequence[int], keep: Sequence[int]) -> list[int]:
    """Numbers in the vectors of each segment."""
    return [k * padded_columns_on_host(n) for n, k in zip(lengths, keep, strict=True)]


def _pick_group(
    x: torch.Tensor,
    inverse: torch.Tensor,
    quality: torch.Tensor,
    marks: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    index: torch.Tensor,
    order: torch.Tensor,
) -> None:
    """Pick rows of one group of segments; its matrices are freed before the next group's exist."""
    matrix, cu_matrix = distance_matrices(x, inverse, marks, cu_seqlens, cu_keep, lengths)
    sizes = Ragged.from_lengths(_sizes(lengths, keep), x.device)
    rows, warps = tile(max(lengths))
    _determinant_kernel[(len(lengths),)](
        matrix,
        inverse,
        quality,
        marks,
        cu_seqlens,
        cu_keep,
        cu_matrix,
        sizes.cu_seqlens,
        torch.empty(sizes.total, dtype=torch.float32, device=x.device),
        index,
        order,
        SPENT=SPENT,
        LINES=_LINES,
        ROWS=rows,
        COLUMNS=COLUMNS,
        num_warps=warps,
        enable_fp_fusion=False,  # gains are then the same in every batch
    )


def _fake(
    features: torch.Tensor,
    quality: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    index = features.new_empty(sum(keep), dtype=torch.int32)
    return index, torch.empty_like(index)


_dpp_select = register(
    "dpp_select(Tensor features, Tensor quality, Tensor cu_seqlens, int[] lengths, int[] keep)"
    " -> (Tensor, Tensor)",
    _launch,
    _fake,
)


def dpp_select(
    features: torch.Tensor,
    quality: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick `keep[s]` rows of each segment that are good and unlike one another.

    Memory beside features and result: the kernel makes at most 1 GiB of fp32 distances and vectors
    at a time, and at least those of one segment, 4 n (n + k) bytes. So does the PyTorch fallback,
    with the unit vectors: 256 MiB, or for a longer segment 6 n^2 + 4 n k + 5 n D bytes.

    Args:
        features: `[T, D]` of any floating dtype; only directions matter. A zero row, or one whose
            norm is below 2^-63, has no gain. A row whose squared norm is not finite in fp32 is
            picked after all finite rows (lowest first) and affects no other.
        quality: `[T]` of any floating dtype, q ≥ 0 (only q^2 counts, in fp32; below 2^-100 it
            counts as 0). Rows whose q^2 is NaN or at least 2^100 are picked with those that are not
            finite.
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
        TypeError: features or quality that are not floating point, or another wrong type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> dpp_select(torch.eye(5), torch.ones(5), Ragged.from_lengths([5], "cpu"), [2]).shape
    torch.Size([2])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "features", features, ndim=2, device=segments.device)
    check_floating(_OP, "features", features)
    check_covers(_OP, "segments", segments, "features", len(features))
    check_tensor(_OP, "quality", quality, ndim=1, device=segments.device)
    check_floating(_OP, "quality", quality)
    check_covers(_OP, "segments", segments, "quality", len(quality))
    keep = checked_keep(_OP, segments, keep)
    too_long = why_unsupported_length(segments.max_seqlen, most=MAX_LENGTH)
    why = too_long or why_unsupported_dtype(features.dtype)
    if use_triton(_OP, impl, features.device, why_unsupported=why, silent=not too_long):
        picks = _dpp_select(features, quality, segments.cu_seqlens, segments.lengths, keep)
        return picks if return_order else picks[0]
    return reference.dpp_select(features, quality, segments, keep, return_order=return_order)
