"""Pick k rows of each segment that lie far from one another (DivPrune's greedy max-min).

With d(i, j) = 1 - cos(x_i, x_j): start from the row whose nearest other row is farthest, then
repeatedly add the row with the largest distance to its nearest picked row.

Three launches: the norms; the distances, by tensor cores from the raw features, each tile folding
its minima into every row's distance to its nearest other; the picking, one program per segment.
Distances are fp32: 16-bit features are multiplied as they are and scaled afterwards, fp32 ones
normalised and multiplied in three tf32 products. Traffic: the features, 4 n^2 bytes of distances
out, and 4 n k of them in again; segments take turns under 1 GiB of distances. Limits: 16384 rows a
segment and fp32, fp16, bf16; "auto" takes the twin for what is beyond.

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning" (CVPR 2025), re-derived.
Different from the authors' code on purpose: distances in fp32 whatever the input dtype, a row's
distance to itself never counts, picked rows are excluded (k distinct rows even among duplicates),
and only a running minimum is kept, so a step reads one row of distances instead of all picked ones.
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
    foreign,
)
from ._launch import (
    INTERPRET,
    cdiv,
    fp32_precision,
    on_device_of,
    register,
    tl,
    triton,
    use_triton,
)
from ._threshold import COLUMNS, positions, segment_bounds, store_picks, tile, unable
from .ragged import Ragged

_OP = "diversity_select"

# Distance matrices made at once: one segment of 16384 rows, or many smaller ones.
_MAX_MATRIX_BYTES = 2**30
_TILE = 64  # of the matrix, for one program
_WARPS, _STAGES = 4, 3
_NORM_ROWS, _NORM_BLOCK = 8, 512

_LEAST_SQUARE = tl.constexpr(2.0**-126)  # below, fp32 loses bits, and with them the direction
_CHOSEN = tl.constexpr(-(2**31))  # below whatever is still in the race, as ordered integers
_BROKEN = tl.constexpr(-(2**31) + 1)  # rows that are not finite: below all others
_FARTHEST = tl.constexpr(2**31 - 1)


@triton.jit
def _ordered(x):
    """fp32 as int32 that sorts alike, so that minima are exact in any order of arrival."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _width(n):
    """Columns of a matrix of n rows: lines start at multiples of 64 bytes."""
    return (n + 15) // 16 * 16


@triton.jit(do_not_specialize=["num_rows"])
def _norms_kernel(
    # pointers
    x_ptr,
    inverse_ptr,
    nearest_ptr,
    # sizes
    num_rows,
    # strides
    stride_x,
    # meta
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (blocks of ROWS rows): 1 / norm of each row, and how near another may count at most.

    0 for a zero row, or as good as one; -1 where the squared norm is not finite.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        source = x_ptr + (row * stride_x)[:, None] + d[None, :]
        x = tl.load(source, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        squares += x * x
    square = tl.sum(squares, axis=1)
    finite = square < float("inf")  # false for NaN too
    directed = finite & (square >= _LEAST_SQUARE)
    norm = tl.sqrt_rn(tl.where(directed, square, 1.0))
    inverse = tl.where(directed, tl.div_rn(tl.full([ROWS], 1.0, tl.float32), norm), 0.0)
    tl.store(inverse_ptr + row, tl.where(finite, inverse, -1.0), mask=inside)
    tl.store(nearest_ptr + row, tl.where(finite, _FARTHEST, _BROKEN), mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def _distances_kernel(
    # pointers
    x_ptr,
    inverse_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    matrix_ptr,
    nearest_ptr,
    # sizes
    tiles,  # along one side of the largest matrix
    # strides
    stride_x,
    # meta
    D: tl.constexpr,
    RAW: tl.constexpr,  # 16-bit features go to the tensor core as they are, to be scaled after
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Grid (segments x tiles of the largest matrix): a program makes a tile of one matrix.

    It folds the tile's minima into `nearest`, as integers, so in any order to the same result.

    A matrix has `_width(n)` columns; those beyond n are left as they are.
    """
    segment = tl.program_id(0) // (tiles * tiles)
    number = tl.program_id(0) % (tiles * tiles)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    _, k = segment_bounds(cu_keep_ptr, segment)
    i_first, j_first = number // tiles * TILE, number % tiles * TILE
    if (k == 0) | (i_first >= n) | (j_first >= n):
        return
    i, j = i_first + tl.arange(0, TILE), j_first + tl.arange(0, TILE)
    i_live, j_live = i < n, j < n
    i_inverse = tl.load(inverse_ptr + first + i, mask=i_live, other=0.0)
    j_inverse = tl.load(inverse_ptr + first + j, mask=j_live, other=0.0)
    i_rows = x_ptr + (first + i).to(tl.int64)[:, None] * stride_x
    j_rows = x_ptr + (first + j).to(tl.int64)[None, :] * stride_x

    dots = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, D, DEPTH):
        d = start + tl.arange(0, DEPTH)
        a = tl.load(i_rows + d[None, :], mask=i_live[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(j_rows + d[:, None], mask=j_live[None, :] & (d < D)[:, None], other=0.0)
        if RAW:
            if INTERPRET:
                a, b = a.to(tl.float32), b.to(tl.float32)
            dots = tl.dot(a, b, dots)
        else:
            a, b = a * i_inverse[:, None], b * j_inverse[None, :]
            dots = tl.dot(a, b, dots, input_precision=PRECISION)
    if RAW:
        dots = dots * i_inverse[:, None] * j_inverse[None, :]
    # A row that is not finite is infinitely far from all others: nobody's nearest neighbour.
    known = (i_inverse >= 0.0)[:, None] & (j_inverse >= 0.0)[None, :]
    distance = tl.where(known, 1.0 - dots, float("inf"))

    both_live = i_live[:, None] & j_live[None, :]
    matrix = matrix_ptr + tl.load(cu_matrix_ptr + segment).to(tl.int64)
    to = i.to(tl.int64)[:, None] * _width(n) + j[None, :]
    tl.store(matrix + to, distance, mask=both_live)
    others = tl.where(both_live & (i[:, None] != j[None, :]), distance, float("inf"))
    tl.atomic_min(
        nearest_ptr + first + i, _ordered(tl.min(others, axis=1)), mask=i_live, sem="relaxed"
    )


@triton.jit
def _farthest(nearest, position):
    """The lowest position of the largest value: two integer reductions, a total order."""
    return tl.min(tl.where(nearest == tl.max(nearest), position, 2147483647))


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

    It holds each row's distance to the nearest pick in registers and reads one line of the matrix
    per step, 16 bytes at a time: lines start at multiples of 16 columns and are read to their
    padded end, which the compiler can see, unlike the row count.
    """
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    position = tl.arange(0, ROWS * COLUMNS)
    live = position < n
    width = _width(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)

    # The first pick is the row whose nearest other is farthest; from then on, nearest pick.
    nearest = tl.load(nearest_ptr + first + position, mask=live, other=_CHOSEN)
    pick = _farthest(nearest, position)
    nearest = tl.where(nearest > _BROKEN, _FARTHEST, nearest)
    step = tl.full((), 0, tl.int32)
    while step < k:
        tl.store(order_ptr + first_out + step, first + pick)
        tl.store(nearest_ptr + first + pick, _CHOSEN)
        line = matrix + pick.to(tl.int64) * width + position
        distance = tl.load(line, mask=position < width, other=0.0)
        nearest = tl.minimum(nearest, _ordered(distance))  # what is not there stays lowest
        nearest = tl.where(position == pick, _CHOSEN, nearest)
        pick = _farthest(nearest, position)
        step += 1

    # The marks are read back in the layout that the prefix sum needs.
    tl.debug_barrier()
    position = positions(ROWS, COLUMNS)
    nearest = tl.load(nearest_ptr + first + position, mask=position < n, other=0)
    store_picks(index_ptr + first_out, first + position, nearest == _CHOSEN, position < 0, k)


def _launch(
    features: torch.Tensor, cu_seqlens: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = Ragged.from_lengths(keep, features.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=features.device)
    order = torch.empty_like(index)
    if kept.total:
        with on_device_of(features):
            x, inverse, nearest = _norms(features)
            for turn in _turns(lengths):
                rows, picks = cu_seqlens, kept.cu_seqlens
                if turn.start:
                    rows, picks = rows[turn.start :], picks[turn.start :]
                _pick(x, inverse, nearest, rows, picks, lengths[turn], index, order)
    return index, order


def _pick(
    x: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    lengths: Sequence[int],
    index: torch.Tensor,
    order: torch.Tensor,
) -> None:
    """One turn; its matrices are freed before those of the next are made."""
    matrix, cu_matrix = _distances(x, inverse, nearest, cu_seqlens, cu_keep, lengths)
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


def _norms(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features with contiguous rows, 1 / their norms, and a first distance to the nearest other."""
    x = features if features.stride(1) == 1 else features.contiguous()
    num_rows, width = x.shape
    inverse = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    nearest = torch.empty(num_rows, dtype=torch.int32, device=x.device)
    _norms_kernel[(cdiv(num_rows, _NORM_ROWS),)](
        x,
        inverse,
        nearest,
        num_rows,
        x.stride(0),
        D=width,
        ROWS=_NORM_ROWS,
        BLOCK=_NORM_BLOCK,
        enable_fp_fusion=False,
    )
    return x, inverse, nearest


def _host_width(n: int) -> int:
    return (n + 15) // 16 * 16  # as `_width` in the kernels


def _turns(lengths: Sequence[int]) -> Iterator[slice]:
    """Consecutive segments whose matrices fit the cap together, or one segment."""
    start = size = 0
    for segment, length in enumerate(lengths):
        more = 4 * length * _host_width(length)
        if size and size + more > _MAX_MATRIX_BYTES:
            yield slice(start, segment)
            start, size = segment, 0
        size += more
    yield slice(start, len(lengths))


def _distances(
    x: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    lengths: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of some segments, one after another, and where each starts."""
    cut = Ragged.from_lengths([n * _host_width(n) for n in lengths], x.device)
    matrix = torch.empty(cut.total, dtype=torch.float32, device=x.device)
    tiles = cdiv(max(lengths), _TILE)
    _distances_kernel[(len(lengths) * tiles * tiles,)](
        x,
        inverse,
        cu_seqlens,
        cu_keep,
        cut.cu_seqlens,
        matrix,
        nearest,
        tiles,
        x.stride(0),
        D=x.shape[1],
        RAW=x.element_size() == 2,
        PRECISION=fp32_precision(),
        TILE=_TILE,
        DEPTH=_depth(x),
        num_warps=_WARPS,
        num_stages=_STAGES,
        enable_fp_fusion=False,  # 1 - dots * a * b rounds alike wherever it is computed
    )
    return matrix, cut.cu_seqlens


def _depth(x: torch.Tensor) -> int:
    """Features read at a time. Twice as many spill: fp32 on sm_80, odd rows nearly everywhere.

    Odd are rows that the compiler does not know to start at multiples of 16 bytes.
    """
    if x.element_size() == 4:
        return 16
    return 64 if (x.stride(0) | x.data_ptr()) % 16 == 0 else 32


def _fake(
    features: torch.Tensor, cu_seqlens: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    index = features.new_empty(sum(keep), dtype=torch.int32)
    return index, torch.empty_like(index)


_diversity_select = register(
    "diversity_select(Tensor features, Tensor cu_seqlens, int[] lengths, int[] keep)"
    " -> (Tensor, Tensor)",
    _launch,
    _fake,
)


def diversity_select(
    features: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick `keep[s]` mutually distant rows of each segment.

    Takes memory for the distances within a segment, fp32; at most 1 GiB at a time in the kernel and
    256 MiB in the twin, or one segment's where these are more. Segments beyond wait their turn.

    Args:
        features: `[T, D]` of any floating dtype; only directions matter. A zero row, or one whose
            norm is below 2^-63, has cosine 0 to all rows. A row whose squared norm is not finite in
            fp32 ranks below all finite rows (lowest first) and changes nobody's distances.
        segments: the cut of the T rows.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        return_order: also return the rows in the order they were picked.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending; with `return_order` a pair of these and the same
        rows in pick order, segment after segment. Ties go to the lowest row.

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit, or what the kernel
            cannot do.
        TypeError: features that are not floating point, or another wrong type.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> diversity_select(torch.eye(5), Ragged.from_lengths([5], "cpu"), [2]).shape
    torch.Size([2])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "features", features, ndim=2, device=segments.device)
    check_floating(_OP, "features", features)
    check_covers(_OP, "segments", segments, "features", len(features))
    keep = checked_keep(_OP, segments, keep)
    too_long = unable(segments.max_seqlen, segments.device)
    cannot = too_long or foreign(features.dtype)
    if use_triton(_OP, impl, features.device, unable=cannot, silent=not too_long):
        picks = _diversity_select(features, segments.cu_seqlens, segments.lengths, keep)
        return picks if return_order else picks[0]
    return reference.diversity_select(features, segments, keep, return_order=return_order)
