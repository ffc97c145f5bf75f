"""Select the k largest sort keys of a segment inside one program; the selection kernels share it.

The k-th largest key is found bit by bit, from the highest: a bit belongs to it if at least k keys
are ≥ the candidate with that bit set. There is no sort: a pass is one compare and one count over
keys that stay in registers, and the search ends as soon as exactly k keys are ≥ the candidate. Then
one prefix sum gives each selected key its place, so rows come out ascending.

Sort keys are uint32 and the larger one wins. A segment is laid out as [ROWS, 32], because a scan
along 32 columns and then over the rows takes less than half the instructions of one long scan.
Positions past the end of the segment have key 0 and are masked.
"""

from collections.abc import Sequence

import torch

from ._launch import TRITON_VERSION, shared_memory, tl, triton

MAX_LENGTH = 16384  # the sort keys of longer segments do not fit the registers of one program
COLUMNS = 32

# Longest segment, and warps of its program. Triton before 3.7 spills at 32 warps; AMD's warps have
# 64 threads, and a program can have 1024 threads.
_MOST_WARPS = 32 if TRITON_VERSION >= (3, 7) and torch.version.hip is None else 16
TILES = ((1024, 4), (4096, 16), (MAX_LENGTH, _MOST_WARPS))


# Triton before 3.7 takes this many bytes of shared memory a row to store the selected rows in order
# (but none in `random_select`). On AMD it takes half of this, which fits.
_BYTES_OUT = 8 if TRITON_VERSION < (3, 7) and torch.version.hip is None else 0


def tile(longest: int, tiles: Sequence[tuple[int, int]] = TILES) -> tuple[int, int]:
    """ROWS and warps of a program for segments of up to `longest` rows."""
    for length, warps in tiles:
        if longest <= length:
            return length // COLUMNS, warps
    raise AssertionError(why_unsupported_length(longest))  # the ops check this first


def why_unsupported_length(
    longest: int, device: torch.device | None = None, most: int = MAX_LENGTH
) -> str:
    """Why one program cannot select among `longest` rows; "" if it can.

    device: given by the ops that may store their selection through shared memory, which is checked.
    most: rows that the op takes; up to 8192 the shared memory suffices.
    """
    if longest > most:
        return f"a segment has {longest} rows and the kernel takes {most}"
    if not _BYTES_OUT or device is None or device.type != "cuda":
        return ""
    if tile(longest)[0] * COLUMNS * _BYTES_OUT <= (available := shared_memory(device)):
        return ""
    return (
        f"a segment has {longest} rows, for which Triton before 3.7 takes more shared memory than "
        f"the {available // 1024} KiB of this GPU"
    )


@triton.jit
def segment_bounds(cu_ptr, segment):
    """First row of a segment, and how many it has."""
    first = tl.load(cu_ptr + segment)
    return first, tl.load(cu_ptr + segment + 1) - first


@triton.jit
def positions(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS]: the position in its segment of each element of the layout."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def kth_largest(key, k, BITS: tl.constexpr):
    """A threshold with at least k keys ≥ it and fewer than k keys > it, and whether it is exact.

    Exact (1): exactly k keys are ≥ it. Otherwise (0) it is the k-th largest key, and not all keys
    equal to it are selected. Bits below the highest BITS must be 0 in every key.
    """
    threshold = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    left = tl.full((), BITS, tl.int32)
    exact = tl.full((), 0, tl.int32)
    while left > 0:
        candidate = threshold | bit
        reached = tl.sum((key >= candidate).to(tl.int32))
        threshold = tl.where(reached >= k, candidate, threshold)
        exact = (reached == k).to(tl.int32)
        bit = bit >> 1
        left = tl.where(exact == 1, 0, left - 1)
    return threshold, exact


@triton.jit
def _picks(above, equal, k):
    """Mask of the k selected keys (all above, then the first equal ones), and their places."""
    # One sum counts both, in 16 bits each: neither count is above 16384.
    both = above.to(tl.int32) + (equal.to(tl.int32) << 16)
    line = tl.sum(both, axis=1)
    before = tl.cumsum(line, axis=0) - line
    upto = tl.cumsum(both, axis=1) + before[:, None]
    room = k - (tl.sum(line, axis=0) & 0xFFFF)
    num_above, num_equal = upto & 0xFFFF, upto >> 16
    # From `both`, not from the masks, which would have to stay in registers until here.
    picked = (both == 1) | ((both > 1) & (num_equal <= room))
    return picked, num_above + tl.minimum(num_equal, room) - 1


@triton.jit
def store_picks(out_ptr, row, above, equal, k):
    """Store the k selected rows, ascending.

    above, equal: masks of the keys above the threshold and equal to it; of the equal ones the first
    are selected until there are k.
    """
    picked, place = _picks(above, equal, k)
    tl.store(out_ptr + place, row, mask=picked)
