"""Keep the k largest keys of a segment, inside one program: what the selection kernels share.

The k-th largest key is found bit by bit, from the top: a bit belongs to it if at least k keys reach
the candidate with that bit set. No sort: a pass is one compare and one count over keys that stay in
registers, and the search ends as soon as exactly k keys reach the candidate. Then one prefix sum
gives each kept key its place, so rows come out ascending.

Keys are unsigned, larger wins; what is not there has key 0 and is not live. A segment is laid out
as [ROWS, 32]: scanning along 32 columns and then over the rows takes less than half the
instructions of one long scan.
"""

import torch

from ._launch import TRITON_VERSION, shared_memory, tl, triton

MAX_LENGTH = 16384  # beyond, the keys no longer fit the registers of one program
COLUMNS = 32

# Longest segment and warps. Triton before 3.7 spills at 32 warps; AMD's have 64 lanes, and 1024
# lanes are what a program can have.
_MOST_WARPS = 32 if TRITON_VERSION >= (3, 7) and torch.version.hip is None else 16
TILES = ((1024, 4), (4096, 16), (MAX_LENGTH, _MOST_WARPS))


# Shared memory in which Triton before 3.7 brings the addresses of picks into order, a row; none for
# random's. On AMD it is half of this, which fits.
_BYTES_OUT = 8 if TRITON_VERSION < (3, 7) and torch.version.hip is None else 0


def tile(longest: int) -> tuple[int, int]:
    """ROWS and warps of a program for segments of up to `longest` rows."""
    for length, warps in TILES:
        if longest <= length:
            return length // COLUMNS, warps
    raise AssertionError(unable(longest))  # the ops ask before they launch


def unable(longest: int, through_memory: torch.device | None = None) -> str:
    """Why a program cannot select among so many rows, "" if it can.

    `through_memory`: the device, where picks may go through shared memory on their way out.
    """
    if longest > MAX_LENGTH:
        return f"a segment has {longest} rows and the kernel takes {MAX_LENGTH}"
    if through_memory is None or through_memory.type != "cuda" or not _BYTES_OUT:
        return ""
    if tile(longest)[0] * COLUMNS * _BYTES_OUT <= (room := shared_memory(through_memory)):
        return ""
    return (
        f"a segment has {longest} rows, for which this Triton takes more shared memory than the "
        f"{room // 1024} KiB there are; from 3.7 on it does not"
    )


@triton.jit
def segment_bounds(cu_ptr, segment):
    """First row of a segment, and how many it has."""
    first = tl.load(cu_ptr + segment)
    return first, tl.load(cu_ptr + segment + 1) - first


@triton.jit
def positions(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS]: the position in the segment that each key stands for."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def kth_largest(key, k, BITS: tl.constexpr):
    """A bound that at least k keys reach while fewer than k are above it, and whether it is exact.

    Exact (1): just k keys reach it. Otherwise (0) it is the k-th largest key, and not all keys
    equal to it can stay. Bits below the top BITS must be 0 in every key.
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
    """Which k keys stay, and their places: all above the threshold, the first of those equal."""
    # Both counts ride in one sum: at most 16384 each, they stay apart and positive.
    both = above.to(tl.int32) + (equal.to(tl.int32) << 16)
    line = tl.sum(both, axis=1)
    before = tl.cumsum(line, axis=0) - line
    upto = tl.cumsum(both, axis=1) + before[:, None]
    room = k - (tl.sum(line, axis=0) & 0xFFFF)
    num_above, num_equal = upto & 0xFFFF, upto >> 16
    # Read off `both`, not the masks: these would have to stay in registers until here.
    picked = (both == 1) | ((both > 1) & (num_equal <= room))
    return picked, num_above + tl.minimum(num_equal, room) - 1


@triton.jit
def store_picks(out_ptr, row, above, equal, k):
    """Store k rows, ascending: all above the threshold and the first of those equal to it."""
    picked, place = _picks(above, equal, k)
    tl.store(out_ptr + place, row, mask=picked)


@triton.jit
def nth_picks(above, equal, k, j, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[J]: at which position the pick of place j stands, 0 <= j < k; elsewhere nowhere.

    Counted, in registers: it stands in the line before which all lines end at a place up to j, and
    in there behind the columns that do. That takes J x ROWS and J x 32 comparisons, not J x N, and
    no memory through which the threads of a program would have to wait for one another.
    """
    picked, _ = _picks(above, equal, k)
    column = tl.arange(0, COLUMNS)[None, :]
    count = tl.sum(picked.to(tl.int32), axis=1)
    word = tl.sum(picked.to(tl.uint32) << column.to(tl.uint32), axis=1)

    passed = tl.cumsum(count, axis=0)[None, :] <= j[:, None]  # [J, ROWS]
    # Lines and picks passed ride in one sum, as above.
    both = tl.sum(tl.where(passed, count[None, :] + 65536, 0), axis=1)
    line, before = both >> 16, both & 0xFFFF
    here = tl.arange(0, ROWS)[None, :] == line[:, None]
    word = tl.sum(tl.where(here, word[None, :], tl.full((), 0, tl.uint32)), axis=1)

    bits = ((word[:, None] >> column.to(tl.uint32)) & 1).to(tl.int32)  # [J, COLUMNS]
    passed = tl.cumsum(bits, axis=1) + before[:, None] <= j[:, None]
    return line * COLUMNS + tl.sum(passed.to(tl.int32), axis=1)
