"""Dot products between the rows of long segments, for `diversity_select`.

The same matrices as in `_distances.py`, by the vendor's matrix product, which is faster for long
segments. They hold raw dot products; who reads a line scales it (`distance_of`, `weighted`), since
a pass that did so would move as many bytes as making them. One more launch reads them for the
distance of each row to its nearest other row.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch

from ._distances import distance_of, ordered_bits, padded_columns, padded_columns_on_host, weighted
from ._launch import cdiv, tl, triton
from ._threshold import segment_bounds
from .ragged import Ragged

_ROWS, _BLOCK = 4, 512  # a program reads 4 rows, 512 columns at a time


@triton.jit(do_not_specialize=["blocks"])
def _nearest_others_kernel(
    # pointers
    dots_ptr,
    inverse_ptr,
    nearest_ptr,
    cu_seqlens_ptr,
    cu_matrix_ptr,
    weights_ptr,  # None: all rows weigh 1
    # sizes
    blocks,  # of rows in the longest segment
    # meta
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (segments x blocks): lower `nearest` of ROWS rows to that of the nearest other row."""
    segment = tl.program_id(0) // blocks
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    i = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    i_live = i < n
    i_inverse = tl.load(inverse_ptr + first + i, mask=i_live, other=0.0)
    width = padded_columns(n)
    matrix = dots_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)
    lines = matrix + i.to(tl.int64)[:, None] * width

    smallest = tl.full([ROWS, BLOCK], float("inf"), tl.float32)
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        j_inverse = tl.load(inverse_ptr + first + j, mask=j < n, other=0.0)
        dots = tl.load(lines + j[None, :], mask=i_live[:, None] & (j < width)[None, :], other=0.0)
        cosine = dots * i_inverse[:, None] * j_inverse[None, :]
        known = tl.minimum(i_inverse[:, None], j_inverse[None, :]) >= 0.0
        distance = distance_of(cosine, known)
        other = (j < n)[None, :] & (i[:, None] != j[None, :])
        smallest = tl.minimum(smallest, tl.where(other, distance, float("inf")))
    smallest = tl.min(smallest, axis=1)
    if weights_ptr is not None:
        # Not 0 past the end, where it is infinity: NumPy, interpreting, warns of 0 * inf.
        i_weight = tl.load(weights_ptr + first + i, mask=i_live, other=1.0)
        smallest = weighted(smallest, i_weight)
    nearest = tl.load(nearest_ptr + first + i, mask=i_live, other=0)
    nearest = tl.minimum(nearest, ordered_bits(smallest))
    tl.store(nearest_ptr + first + i, nearest, mask=i_live)


def takes_dot_products(x: torch.Tensor) -> bool:
    """Whether these features are multiplied here, and not by `distance_matrices`.

    All segments have to begin at multiples of 16 bytes: the library chooses its kernel, and so the
    order of its sums, by the alignment too, and a result must not depend on the rest of the batch.
    """
    aligned = (x.stride(0) * x.element_size() | x.data_ptr()) % 16 == 0
    return x.element_size() == 2 and aligned and torch.version.hip is None


def dot_products(
    x: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    offset: int,
    lengths: Sequence[int],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The dot products of these segments, one matrix after another, and the offset of each matrix.

    offset: the first row of the first segment. Lowers `nearest` in place to each row's distance to
    its nearest other row, as `ordered_bits`, which `weights` (as given to `norms`) multiply.
    """
    widths = [padded_columns_on_host(n) for n in lengths]
    matrices = Ragged.from_lengths([n * w for n, w in zip(lengths, widths, strict=True)], x.device)
    matrix = torch.empty(matrices.total, dtype=torch.float32, device=x.device)
    starts = accumulate(lengths, initial=offset)
    for start, n, width, part in zip(
        starts, lengths, widths, matrix.split(matrices.lengths), strict=False
    ):
        _multiply(x[start : start + n], out=part.view(n, width)[:, :n])
    blocks = cdiv(max(lengths), _ROWS)
    _nearest_others_kernel[(len(lengths) * blocks,)](
        matrix,
        inverse,
        nearest,
        cu_seqlens,
        matrices.cu_seqlens,
        weights,
        blocks,
        ROWS=_ROWS,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,  # as in `_distances.py`
    )
    return matrix, matrices.cu_seqlens


def _multiply(rows: torch.Tensor, out: torch.Tensor) -> None:
    """`out = rows @ rows.T` in fp32. Having `out=`, the product is left alone by autocast."""
    rows = rows.detach()
    if rows.is_cuda:
        torch.mm(rows, rows.T, out_dtype=torch.float32, out=out)
    else:  # interpreted, or executed as PTX; `out_dtype` is for CUDA alone
        torch.mm(rows.float(), rows.float().T, out=out)
