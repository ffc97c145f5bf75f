"""Launch settings of the attention kernels, per GPU, head size and element size.

Every entry fits the shared memory and compiles with Triton 3.6 and 3.7 without register spills,
whether keys are read in place or through an index; only rows whose stride is no multiple of 16
elements may spill. None has been timed yet.
"""

from functools import lru_cache
from typing import NamedTuple


class Tile(NamedTuple):
    """Queries of a program (BLOCK_M), keys of a step (BLOCK_N), warps, and pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int

    @property
    def stages_indexed(self) -> int:
        """Pipeline stages with keys through an index, whose load takes a stage of its own."""
        return self.stages + 1


MAX_HEAD = {4: 128, 2: 256}  # by element size in bytes; larger heads spill

# The second tile of a pair is for short sequences, and for batches that would not fill the GPU.
# Both tile sizes share BLOCK_N (`keys`), so a result does not depend on the batch.
_ATTENTION = {
    ("sm_80", 64): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("sm_80", 128): (Tile(128, 32, 8, 3), Tile(64, 32, 4, 2)),  # 64 keys spill
    ("sm_80", 256): (Tile(64, 32, 8, 2),),
    ("sm_90", 64): (Tile(128, 64, 4, 3), Tile(64, 64, 4, 3)),  # wgmma takes 64 queries
    ("sm_90", 128): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)),  # 128 queries spill in 4 warps
    ("sm_90", 256): (Tile(64, 64, 8, 2),),
    ("sm_100", 64): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("sm_100", 128): (Tile(128, 64, 8, 3), Tile(64, 64, 4, 3)),
    ("sm_100", 256): (Tile(64, 64, 8, 2),),
    ("gfx942", 64): (Tile(128, 64, 4, 2), Tile(64, 64, 4, 2)),  # 64 KiB of shared memory
    ("gfx942", 128): (Tile(128, 64, 4, 2), Tile(64, 64, 4, 2)),
    ("gfx942", 256): (Tile(64, 32, 4, 2),),
}
# An fp32 product is three tf32 products, which hold q in registers twice, so tiles are small.
_ATTENTION_FP32 = {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 32, 8, 2),)}


def padded_head(head_size: int) -> int:
    """Head size as programs hold it: the next power of 2 that tensor cores take."""
    return max(16, 1 << (head_size - 1).bit_length())


@lru_cache(maxsize=64)
def attention_tiles(arch: str, head_size: int, itemsize: int) -> tuple[Tile, Tile]:
    """The tile of `ragged_attention` and the smaller one of its pair, or the same one twice."""
    width = max(64, padded_head(head_size))
    tiles = _ATTENTION[arch, width] if itemsize == 2 else _ATTENTION_FP32[width]
    return tiles[0], tiles[-1]


DECODE_ROWS = 16  # query heads of a program: the least that tensor cores take

# By element size in bytes and padded head size.
_DECODE = {
    (2, 64): Tile(DECODE_ROWS, 128, 4, 3),  # 64 keys through an index spill
    (2, 128): Tile(DECODE_ROWS, 64, 4, 3),
    (2, 256): Tile(DECODE_ROWS, 32, 4, 3),
    (4, 64): Tile(DECODE_ROWS, 64, 4, 2),
    (4, 128): Tile(DECODE_ROWS, 32, 4, 2),
}


@lru_cache(maxsize=64)
def decode_tile(arch: str, head_size: int, itemsize: int) -> Tile:
    """The tile of `ragged_decode`."""
    tile = _DECODE[itemsize, max(64, padded_head(head_size))]
    if head_size != padded_head(head_size):  # masked columns take registers
        tile = tile._replace(keys=tile.keys // 2)
    return tile._replace(stages=2) if arch == "gfx942" else tile
