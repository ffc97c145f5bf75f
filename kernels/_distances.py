"""Cosine distances between the rows of each segment, for the greedy selections.

Two launches: the norms of all rows; then the distances, by tensor cores from the raw features. Each
program makes one tile of a matrix and folds the minima of that tile into `nearest`, the distance of
each row to its nearest other row. Distances are fp32: 16-bit features are multiplied as they are
and scaled afterwards; fp32 features are normalised first and multiplied as three tf32 products.

With weights, column j holds the distances of row j times w_j, and so does `nearest`. Rounding keeps
the order, so the least weighted distance of a row is its least distance, weighted.
"""

from collections.abc import Iterator, Sequence

import torch

from ._launch import INTERPRET, cdiv, fp32_precision, tl, triton
from ._threshold import segment_bounds
from .ragged import Ragged

_TILE = 64  # a program makes 64 x 64 distances
_WARPS, _STAGES = 4, 3
_NORM_ROWS, _NORM_BLOCK = 8, 512

# Limit on the distances held at once: one segment of 16384 rows, or many smaller segments.
MAX_MATRIX_BYTES = 2**30

_MIN_SQUARE = tl.constexpr(2.0**-126)  # squared norms below it lose bits in fp32

# Special values of `nearest`, which holds distances as `ordered_bits`; the distances of finite rows
# lie between the last two.
PICKED = tl.constexpr(-(2**31))
NOT_FINITE = tl.constexpr(-(2**31) + 1)
FARTHEST = tl.constexpr(2**31 - 1)


@triton.jit
def ordered_bits(x):
    """fp32 as int32 with the same order, so that an atomic minimum is exact in any order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def distance_of(cosine, known):
    """1 - cosine; infinity where a row is not finite, so that it is no row's nearest other.

    known: whether both rows are finite: 1 / norm, as `norms` stores it, is 0 or more.
    """
    return tl.where(known, 1.0 - cosine, float("inf"))


@triton.jit
def weighted(distance, weight):
    """Distances of rows times their weights.

    Infinity stays infinity, for weights of 0 and for the NaN of a row that counts as not finite.
    Where rounding made a distance negative, a weight of 0 gives 0.0, for `ordered_bits` puts -0.0
    below it.
    """
    return tl.where(distance < float("inf"), distance * weight + 0.0, float("inf"))


@triton.jit
def padded_columns(n):
    """Columns of a matrix of n rows, padded: each line starts at a multiple of 64 bytes."""
    return (n + 15) // 16 * 16


def padded_columns_on_host(n: int) -> int:
    """The same as `padded_columns`, outside kernels."""
    return (n + 15) // 16 * 16


@triton.jit(do_not_specialize=["num_rows"])
def _norms_kernel(
    # pointers
    x_ptr,
    inverse_ptr,
    nearest_ptr,
    weights_ptr,  # None: all rows weigh 1
    # sizes
    num_rows,
    # strides
    stride_x,
    # meta
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (blocks of ROWS rows): store 1 / norm of each row, and initialise `nearest`.

    1 / norm is 0 for a (nearly) zero row, and -1 where the squared norm is not finite, or the
    weight is negative or not finite.
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
    if weights_ptr is not None:
        weight = tl.load(weights_ptr + row, mask=inside, other=0.0)
        finite = finite & (weight >= 0.0) & (weight < float("inf"))
    directed = finite & (square >= _MIN_SQUARE)
    norm = tl.sqrt_rn(tl.where(directed, square, 1.0))
    inverse = tl.where(directed, tl.div_rn(tl.full([ROWS], 1.0, tl.float32), norm), 0.0)
    tl.store(inverse_ptr + row, tl.where(finite, inverse, -1.0), mask=inside)
    tl.store(nearest_ptr + row, tl.where(finite, FARTHEST, NOT_FINITE), mask=inside)


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
    weights_ptr,  # None: all rows weigh 1
    # sizes
    tiles,  # along one side of the largest matrix
    # strides
    stride_x,
    # meta
    D: tl.constexpr,
    RAW: tl.constexpr,  # 16-bit features are multiplied as they are and scaled afterwards
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Grid (segments x tiles of the largest matrix): a program makes one tile of one matrix.

    It also folds the minimum of each row into `nearest`, by atomics on integers, whose result does
    not depend on their order. Columns n to `padded_columns(n)` of a matrix are not written.
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
    known = (i_inverse >= 0.0)[:, None] & (j_inverse >= 0.0)[None, :]
    distance = distance_of(dots, known)

    both_live = i_live[:, None] & j_live[None, :]
    matrix = matrix_ptr + tl.load(cu_matrix_ptr + segment).to(tl.int64)
    to = i.to(tl.int64)[:, None] * padded_columns(n) + j[None, :]
    line = distance
    if weights_ptr is not None:
        j_weight = tl.load(weights_ptr + first + j, mask=j_live, other=0.0)
        line = weighted(distance, j_weight[None, :])
    tl.store(matrix + to, line, mask=both_live)
    others = tl.where(both_live & (i[:, None] != j[None, :]), distance, float("inf"))
    nearest = nearest_ptr + first + i
    smallest = tl.min(others, axis=1)
    if weights_ptr is not None:
        # Not 0 past the end, where it is infinity: NumPy, interpreting, warns of 0 * inf.
        i_weight = tl.load(weights_ptr + first + i, mask=i_live, other=1.0)
        smallest = weighted(smallest, i_weight)
    tl.atomic_min(nearest, ordered_bits(smallest), mask=i_live, sem="relaxed")


def groups(sizes: Sequence[int], kinds: Sequence[object]) -> Iterator[slice]:
    """Split segments into consecutive groups, of one or more, whose matrices fit the limit.

    sizes: bytes of each segment's matrix, and of what is held with it. kinds: no group has segments
    of two kinds, so that a segment is treated alike in every batch.
    """
    start = size = 0
    for segment, more in enumerate(sizes):
        other_kind = kinds[segment] != kinds[start]
        if other_kind or (size and size + more > MAX_MATRIX_BYTES):
            yield slice(start, segment)
            start, size = segment, 0
        size += more
    yield slice(start, len(sizes))


def matrix_bytes(n: int) -> int:
    """Bytes of the distances in a segment of n rows."""
    return 4 * n * padded_columns_on_host(n)


def norms(
    features: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features with contiguous rows, 1 / norm of each row, and `nearest` before any distance.

    weights: fp32 `[T]`, contiguous. A row whose weight is negative or not finite gets the norm of a
    row that is not finite.
    """
    x = features if features.stride(1) == 1 else features.contiguous()
    num_rows, width = x.shape
    inverse = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    nearest = torch.empty(num_rows, dtype=torch.int32, device=x.device)
    _norms_kernel[(cdiv(num_rows, _NORM_ROWS),)](
        x,
        inverse,
        nearest,
        weights,
        num_rows,
        x.stride(0),
        D=width,
        ROWS=_NORM_ROWS,
        BLOCK=_NORM_BLOCK,
        enable_fp_fusion=False,
    )
    return x, inverse, nearest


def distance_matrices(
    x: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    lengths: Sequence[int],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The distances of these segments, one matrix after another, and the offset of each matrix.

    Lowers `nearest` in place to each row's distance to its nearest other row, as `ordered_bits`.
    weights: as given to `norms`; the distances of a row are multiplied by its weight.
    """
    matrices = Ragged.from_lengths([n * padded_columns_on_host(n) for n in lengths], x.device)
    matrix = torch.empty(matrices.total, dtype=torch.float32, device=x.device)
    tiles = cdiv(max(lengths), _TILE)
    _distances_kernel[(len(lengths) * tiles * tiles,)](
        x,
        inverse,
        cu_seqlens,
        cu_keep,
        matrices.cu_seqlens,
        matrix,
        nearest,
        weights,
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
    return matrix, matrices.cu_seqlens


def _depth(x: torch.Tensor) -> int:
    """Features read at a time. Twice as many would spill registers: on sm_80 in fp32, and on nearly
    every GPU if the compiler does not know that rows start at multiples of 16 bytes.
    """
    if x.element_size() == 4:
        return 16
    return 64 if (x.stride(0) | x.data_ptr()) % 16 == 0 else 32
