"""Greedy picks of long segments by many programs, in rounds of one launch, for `diversity_select`.

The columns of a segment are dealt out to `_BLOCKS` programs. After each round every program names
its best columns as candidates; in the next one every program runs the greedy among the candidates
of all, which is the same computation everywhere, and lowers the distances of its own columns. Each
step gives the plain greedy's pick: distances to the nearest pick only sink, so a column that is no
candidate stays behind the last candidate of its program, and a round ends at a pick that would be
behind one of these. The first pick of a round never is.

So the host reads nothing back. It launches as many rounds as pictures take; rounds whose work is
done return at once, and for other features the last launch picks what is left. Source: own.
"""

from collections.abc import Sequence

import torch

from ._distances import (
    FARTHEST,
    NOT_FINITE,
    PICKED,
    distance_of,
    ordered_bits,
    padded_columns,
    weighted,
)
from ._launch import cdiv, next_power_of_2, tl, triton
from ._repeat import Repeat
from ._threshold import COLUMNS, positions, segment_bounds, store_picks, tile

# 512 candidates are 4 for each thread of 4 warps. A round then picks 130 to 210 of 16384 rows, at
# k = 0.64 n, in simulated features of six kinds.
_BLOCKS, _CANDIDATES, _WARPS = 32, 16, 4
# Columns dealt out at a time, since good ones are often neighbours: 64 bytes of a line.
_CHUNK = 16

_FINISH_BLOCK = 1024  # columns that the last launch reads at a time; more spill under Triton 3.6


@triton.jit
def farthest(nearest, position):
    """The largest value, and the lowest position that has it: two integer reductions."""
    value = tl.max(nearest)
    return value, tl.min(tl.where(nearest == value, position, 2147483647))


@triton.jit
def lowered(nearest, dots, position, pick, i_inverse, j_inverse, j_weight, SCALED: tl.constexpr):
    """`nearest` after a pick, from its line of the matrix: of distances if SCALED, or of dots.

    j_weight: of each column of dots; None where all rows weigh 1.
    """
    distance = dots
    if not SCALED:
        known = tl.minimum(i_inverse, j_inverse) >= 0.0
        distance = distance_of(dots * i_inverse * j_inverse, known)
    if j_weight is not None:
        distance = weighted(distance, j_weight)
    nearest = tl.minimum(nearest, ordered_bits(distance))
    return tl.where(position == pick, PICKED, nearest)


@triton.jit
def store_picked(index_ptr, nearest_ptr, first, n, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store the k rows that are marked as PICKED in `nearest`, ascending."""
    tl.debug_barrier()  # the marks are read back in the layout that `store_picks` needs
    position = positions(ROWS, COLUMNS)
    nearest = tl.load(nearest_ptr + first + position, mask=position < n, other=0)
    store_picks(index_ptr, first + position, nearest == PICKED, position < 0, k)


@triton.jit(do_not_specialize=["number"])
def _round_kernel(
    # pointers
    matrix_ptr,
    inverse_ptr,
    nearest_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    candidates_ptr,
    done_ptr,
    order_ptr,
    weights_ptr,  # None: all rows weigh 1, or the distances are weighted
    # sizes
    number,  # of this round
    # meta
    SCALED: tl.constexpr,
    BLOCKS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Grid (segments x BLOCKS): pick among the candidates of all programs, then name new ones.

    Round 0 only names candidates: the rows farthest from their nearest other row, for the first
    pick. What a round reads (candidates, picks done) was written by the round before it, and it
    writes beside that, since programs of one launch run in any order.
    """
    segment, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    begun = number > 0
    old, new = 2 * segment + number % 2, 2 * segment + (number + 1) % 2
    done = tl.load(done_ptr + old, mask=begun, other=0)
    if done >= k:
        if block == 0:
            tl.store(done_ptr + new, done)
        return
    width = padded_columns(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)
    inverse = inverse_ptr + first

    NUMBER: tl.constexpr = BLOCKS * CANDIDATES
    number_of = tl.arange(0, NUMBER)
    values = candidates_ptr + old * (2 * NUMBER) + number_of
    value = tl.load(values, mask=begun, other=PICKED)
    position = tl.load(values + NUMBER, mask=begun, other=0)
    inside = position < n
    position_inverse = tl.load(inverse + position, mask=inside, other=0.0)
    # A column that is no candidate is behind the last candidate of its program.
    last = number_of % CANDIDATES == CANDIDATES - 1
    bound, bound_position = farthest(tl.where(last, value, PICKED), position)
    # The first pick is alone in its round, since all distances to others do not count after it.
    bound = tl.where(done == 0, FARTHEST, bound)

    offset = tl.arange(0, WIDTH)
    column = (offset // CHUNK * BLOCKS + block) * CHUNK + offset % CHUNK
    live = column < n
    column_inverse = tl.load(inverse + column, mask=live, other=0.0)
    nearest = tl.load(nearest_ptr + first + column, mask=live, other=PICKED)
    nearest = tl.where(begun & (done == 0) & (nearest > NOT_FINITE), FARTHEST, nearest)

    column_weight = None
    if weights_ptr is not None:
        column_weight = tl.load(weights_ptr + first + column, mask=live, other=0.0)

    _, pick = farthest(value, position)
    picking = begun
    while picking:
        if block == 0:
            tl.store(order_ptr + first_out + done, first + pick)
        line = matrix + pick.to(tl.int64) * width
        i_inverse = tl.load(inverse + pick)
        to_candidates = tl.load(line + position, mask=inside, other=0.0)
        to_columns = tl.load(line + column, mask=column < width, other=0.0)
        position_weight = None
        if weights_ptr is not None:  # again in each step: kept, they spill on sm_100
            position_weight = tl.load(weights_ptr + first + position, mask=inside, other=0.0)
        value = lowered(
            value,
            to_candidates,
            position,
            pick,
            i_inverse,
            position_inverse,
            position_weight,
            SCALED,
        )
        nearest = lowered(
            nearest, to_columns, column, pick, i_inverse, column_inverse, column_weight, SCALED
        )
        done += 1
        best, pick = farthest(value, position)
        ahead = (best > bound) | ((best == bound) & (pick <= bound_position))
        picking = ahead & (done < k)

    # Several warps may hold one column: all have to read it before it is written.
    tl.debug_barrier()
    tl.store(nearest_ptr + first + column, nearest, mask=live)
    if block == 0:
        tl.store(done_ptr + new, done)
    own = candidates_ptr + new * (2 * NUMBER) + block * CANDIDATES
    for i in range(CANDIDATES):
        best, pick = farthest(nearest, column)
        tl.store(own + i, best)
        tl.store(own + NUMBER + i, pick)
        nearest = tl.where(column == pick, PICKED, nearest)


@triton.jit
def _finish_kernel(
    # pointers
    matrix_ptr,
    inverse_ptr,
    nearest_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    cu_matrix_ptr,
    done_ptr,
    index_ptr,
    order_ptr,
    weights_ptr,  # None: all rows weigh 1, or the distances are weighted
    # meta
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Grid (segments): pick what the rounds have left, mostly nothing; store all picks, ascending.

    As `_greedy_kernel`, but `nearest` stays in memory: the registers would not hold norms too.
    """
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    if k == 0:
        return
    width = padded_columns(n)
    matrix = matrix_ptr + tl.multiple_of(tl.load(cu_matrix_ptr + segment), 16).to(tl.int64)
    inverse = inverse_ptr + first

    done = tl.load(done_ptr + 2 * segment)
    # The last pick of the rounds: to lower the distances by it again changes nothing.
    pick = tl.load(order_ptr + first_out + done - 1) - first
    while done < k:
        best = tl.full([BLOCK], PICKED, tl.int32)
        place = tl.full([BLOCK], 0, tl.int32)
        line = matrix + pick.to(tl.int64) * width
        i_inverse = tl.load(inverse + pick)
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            live = column < n
            dots = tl.load(line + column, mask=column < width, other=0.0)
            j_inverse = tl.load(inverse + column, mask=live, other=0.0)
            nearest = tl.load(nearest_ptr + first + column, mask=live, other=PICKED)
            j_weight = None
            if weights_ptr is not None:
                j_weight = tl.load(weights_ptr + first + column, mask=live, other=0.0)
            nearest = lowered(nearest, dots, column, pick, i_inverse, j_inverse, j_weight, SCALED)
            tl.store(nearest_ptr + first + column, nearest, mask=live)
            place = tl.where(nearest > best, column, place)
            best = tl.maximum(best, nearest)
        _, pick = farthest(best, place)
        tl.store(order_ptr + first_out + done, first + pick)
        done += 1
    tl.debug_barrier()  # another thread has stored the distance of the last pick
    tl.store(nearest_ptr + first + pick, PICKED)
    store_picked(index_ptr + first_out, nearest_ptr, first, n, k, ROWS, COLUMNS)


def pick_in_rounds(
    matrix: torch.Tensor,
    inverse: torch.Tensor,
    nearest: torch.Tensor,
    cu_seqlens: torch.Tensor,
    cu_keep: torch.Tensor,
    cu_matrix: torch.Tensor,
    index: torch.Tensor,
    order: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    *,
    scaled: bool,
    weights: torch.Tensor | None = None,
) -> None:
    """Store the picks of these segments in `index`, ascending, and in `order`, in pick order.

    nearest: each row's distance to its nearest other row, as `ordered_bits`; it is overwritten.
    scaled: whether the matrices hold distances, as `distance_matrices` makes them, or dot products.
    weights: as given to `norms`; distances are weighted already.
    """
    segments, longest, device = len(lengths), max(lengths), order.device
    # Of two parities of rounds; of candidates the distances and the columns.
    sizes = segments, 2, 2, _BLOCKS * _CANDIDATES
    candidates = torch.empty(sizes, dtype=torch.int32, device=device)
    done = torch.empty(segments, 2, dtype=torch.int32, device=device)
    tensors = (matrix, inverse, nearest, cu_seqlens, cu_keep, cu_matrix)
    weights = None if scaled else weights
    constants = {
        "SCALED": scaled,
        "BLOCKS": _BLOCKS,
        "WIDTH": max(_CHUNK, next_power_of_2(cdiv(longest, _BLOCKS))),
        "CHUNK": _CHUNK,
        "CANDIDATES": _CANDIDATES,
    }
    options = {"num_warps": _WARPS, "enable_fp_fusion": False}  # as in `_distances.py`
    launch_round = Repeat(_round_kernel, (segments * _BLOCKS, 1, 1), constants, options)
    for number in range(_rounds(max(keep)) + 1):
        launch_round(*tensors, candidates, done, order, weights, number)
    rows, warps = tile(longest)
    _finish_kernel[(segments,)](
        *tensors,
        done,
        index,
        order,
        weights,
        SCALED=scaled,
        BLOCK=_FINISH_BLOCK,
        ROWS=rows,
        COLUMNS=COLUMNS,
        num_warps=warps,
        enable_fp_fusion=False,
    )


def _rounds(k: int) -> int:
    """How many rounds to launch; odd, so that the last one stores at the start of `done`.

    Simulated features of six kinds (Gaussian, in clusters, smooth, half flat, alike, half copies)
    took 1/3 to 4/5 of them, for N = 2,048 to 16,384 and k = 0.64 N.
    """
    return (24 + cdiv(k, 128)) | 1
