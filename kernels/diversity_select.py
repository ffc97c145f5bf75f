"""Pick k rows of each segment that lie far from one another (DivPrune's greedy max-min).

With d(i, j) = 1 - cos(x_i, x_j): start from the row whose nearest other row is farthest, then
repeatedly add the row with the largest distance to its nearest picked row. With weights a row
counts by w_j times that distance.

Three launches: two for the distances (`_distances.py`), then the picking, one program per segment.
In segments of 2048 rows and more many programs pick, in rounds (`_greedy_rounds.py`); dot products
of 16-bit features are then made by the vendor's library (`_dot_products.py`).
Traffic: the features, 4 n^2 bytes of distances out, and 4 n k of them in again. Segments are
processed in groups that need at most 1 GiB of distances. Limits: 16384 rows a segment and fp32,
fp16, bf16; "auto" falls back to PyTorch for anything else.

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning" (CVPR 2025), re-derived; for
the weights Cen-Prune (arXiv 2608.30263).
Deliberate differences from the authors' code: distances are in fp32 whatever the input dtype, a
row's distance to itself never counts, picked rows are excluded (k distinct rows even among
duplicates), and only a running minimum is kept, so a step reads one row of distances instead of all
picked ones.
"""

from collections.abc import Iterator, Sequence

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
from ._distances import (
    FARTHEST,
    NOT_FINITE,
    PICKED,
    distance_matrices,
    groups,
    matrix_bytes,
    norms,
    ordered_bits,
    padded_columns,
)
from ._dot_products import dot_products, takes_dot_products
from ._greedy_rounds import farthest, pick_in_rounds, store_picked
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import COLUMNS, segment_bounds, tile, why_unsupported_length
from .ragged import Ragged

_OP = "diversity_select"

_LONG = 2048  # rows from which on a segment is picked from in rounds


@triton.jit
def _greedy_kernel(
    # pointers
    matrix_ptr,
    nearest_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    index_ptr,
    order_ptr,
    # meta
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (segments): a program picks the rows of its segment one after another.

    It holds each row's distance to its nearest picked row in registers, and reads one line of the
    matrix per step, 16 bytes at a time. For that, lines start at multiples of 16 columns and are
    read to their padded end: the compiler knows that it is a multiple of 16, but not that n is.
    """
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    position = tl.arange(0, ROWS * COLUMNS)
    live = position < n
    width = padded_columns(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)

    # `nearest` is the distance to the nearest other row for the first pick, from then on to the
    # nearest picked row.
    nearest = tl.load(nearest_ptr + first + position, mask=live, other=PICKED)
    _, pick = farthest(nearest, position)
    nearest = tl.where(nearest > NOT_FINITE, FARTHEST, nearest)
    step = tl.full((), 0, tl.int32)
    while step < k:
        tl.store(order_ptr + first_out + step, first + pick)
        tl.store(nearest_ptr + first + pick, PICKED)
        line = matrix + pick.to(tl.int64) * width + position
        distance = tl.load(line, mask=position < width, other=0.0)
        nearest = tl.minimum(nearest, ordered_bits(distance))  # positions past the end stay lowest
        nearest = tl.where(position == pick, PICKED, nearest)
        _, pick = farthest(nearest, position)
        step += 1
    store_picked(index_ptr + first_out, nearest_ptr, first, n, k, ROWS, COLUMNS)


def _launch(
    features: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = Ragged.from_lengths(keep, features.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=features.device)
    order = torch.empty_like(index)
    if kept.total:
        with on_device_of(features):
            weights = None if weights is None else weights.contiguous()
            x, inverse, nearest = norms(features, weights)
            first = 0
            for group in _groups(lengths):
                rows, picks = cu_seqlens, kept.cu_seqlens
                if group.start:
                    rows, picks = rows[group.start :], picks[group.start :]
                counts = lengths[group], keep[group]
                _pick_group(x, inverse, nearest, rows, picks, first, *counts, index, order, weights)
                first += sum(lengths[group])
    return index, order


def _pick_group(
    x: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    first: int,
    lengths: Sequence[int],
    keep: Sequence[int],
    index: torch.Tensor,
    order: torch.Tensor,
    weights: torch.Tensor | None,
) -> None:
    """Pick rows of one group of segments; its matrices are freed before the next group's exist.

    first: the first row of the group.
    """
    long = max(lengths) >= _LONG
    scaled = not (long and takes_dot_products(x))
    made = x, inverse, nearest, cu_seqlens
    if scaled:
        matrix, cu_matrix = distance_matrices(*made, cu_keep, lengths, weights)
    else:
        matrix, cu_matrix = dot_products(*made, first, lengths, weights)
    if long:
        tensors = (matrix, inverse, nearest, cu_seqlens, cu_keep, cu_matrix, index, order)
        pick_in_rounds(*tensors, lengths, keep, scaled=scaled, weights=weights)
        return
    rows, warps = tile(max(lengths))
    _greedy_kernel[(len(lengths),)](
        matrix,
        nearest,
        cu_seqlens,
        cu_keep,
        cu_matrix,
        index,
        order,
        ROWS=rows,
        COLUMNS=COLUMNS,
        num_warps=warps,
        enable_fp_fusion=True,
    )


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    return groups([matrix_bytes(n) for n in lengths], [n >= _LONG for n in lengths])


def _fake(
    features: torch.Tensor,
    cu_seqlens: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    index = features.new_empty(sum(keep), dtype=torch.int32)
    return index, torch.empty_like(index)


_diversity_select = register(
    "diversity_select(Tensor features, Tensor cu_seqlens, int[] lengths, int[] keep,"
    " Tensor? weights=None) -> (Tensor, Tensor)",
    _launch,
    _fake,
)


def diversity_select(
    features: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    weights: torch.Tensor | None = None,
    return_order: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick `keep[s]` mutually distant rows of each segment.

    Memory beside features and result: the kernel makes at most 1 GiB of fp32 distances at a time,
    and at least those of one segment. The PyTorch fallback needs at most 256 MiB, however long the
    segments are: where the distances within one do not fit (from about 6,000 rows on) it makes
    rows of them again as they are needed. On a CPU at most 2 k + 32 rows for each time that it has
    to make some; counted for 6,000 rows in 200 clusters, k = 3000: 6,090 rows in 31 times.

    Args:
        features: `[T, D]` of any floating dtype; only directions matter. A zero row, or one whose
            norm is below 2^-63, has cosine 0 to all rows. A row whose squared norm is not finite in
            fp32 is picked after all finite rows (lowest first) and does not affect their distances.
        segments: which of the T rows form which segment.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        weights: `[T]` fp32, ≥ 0. A step picks the row with the largest w_j · (distance to its
            nearest picked row), the first step w_j · (distance to its nearest other row). A row
            whose weight is negative, infinite or NaN counts as one that is not finite. None: all
            rows weigh 1.
        return_order: also return the rows in the order they were picked.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending; with `return_order` a pair of these and the same
        rows in pick order, segment after segment. Ties go to the lowest row.

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit, or impl="triton" for
            what the kernel cannot do.
        TypeError: features that are not floating point, weights that are not fp32, or another wrong
            type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> diversity_select(torch.eye(5), Ragged.from_lengths([5], "cpu"), [2]).shape
    torch.Size([2])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "features", features, ndim=2, device=segments.device)
    check_floating(_OP, "features", features)
    check_covers(_OP, "segments", segments, "features", len(features))
    if weights is not None:
        check_tensor(
            _OP, "weights", weights, ndim=1, dtypes=(torch.float32,), device=segments.device
        )
        check_covers(_OP, "segments", segments, "weights", len(weights))
    keep = checked_keep(_OP, segments, keep)
    too_long = why_unsupported_length(segments.max_seqlen, segments.device)
    why = too_long or why_unsupported_dtype(features.dtype)
    if use_triton(_OP, impl, features.device, why_unsupported=why, silent=not too_long):
        picks = _diversity_select(features, segments.cu_seqlens, segments.lengths, keep, weights)
        return picks if return_order else picks[0]
    return reference.diversity_select(
        features, segments, keep, weights=weights, return_order=return_order
    )
