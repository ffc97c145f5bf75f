"""Gather the rows a selection picks in the launch that picks them: what random and top-k share.

The programs of one launch cannot wait for one another, so each of them selects anew for its whole
segment, in registers, and copies only its own block of picks and its own span of columns. One
launch and one call fewer, for a selection done as often as a segment has such blocks: meant for
small batches, where launches cost more than selecting. Not timed on a GPU yet, so nothing in vtfast
takes it by itself.

Limits: 4096 rows a segment. Beyond, selecting costs more than a launch, and the ops that take
`gather=` launch twice; that is a choice between two forms of the kernel, not a fallback.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ._launch import cdiv, on_device_of, tl, triton
from ._threshold import COLUMNS, nth_picks, segment_bounds, tile
from .gather import copy_rows, copying, new_rows, spans
from .ragged import Ragged

MAX_LENGTH = 4096

# A program's share: 32 picks x 512 words, in blocks of 8 loads of 16 bytes for each thread, or of 2
# loads of a word where rows do not come 16 bytes at a time: more row addresses would spill.
PICKS = 32
SPAN = 512
WORDS_PER_WARP, ODD_WORDS_PER_WARP = 32, 2  # of a block


@triton.jit
def my_share(cu_seqlens_ptr, cu_keep_ptr, blocks, PICKS: tl.constexpr):
    """Segment of this program, its bounds, those of its picks, and the first pick to copy.

    Programs 0 to blocks - 1 share the first segment, and so on, whatever that one keeps.
    """
    segment = tl.program_id(0) // blocks
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    return segment, first, n, first_out, k, tl.program_id(0) % blocks * PICKS


@triton.jit
def copy_picks(
    index_ptr,
    x_ptrs,
    out_ptrs,
    strides,
    first,
    first_out,
    k,
    first_pick,
    above,
    equal,
    LAYOUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PICKS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Copy a block of picks in a span of columns; the first span's program stores the index."""
    place = first_pick + tl.arange(0, PICKS)
    inside = place < k
    row = first + nth_picks(above, equal, k, place, ROWS, COLUMNS)
    j = first_out.to(tl.int64) + place
    if tl.program_id(1) == 0:
        tl.store(index_ptr + j, row, mask=inside)
    row = row.to(tl.int64)
    copy_rows(x_ptrs, out_ptrs, strides, row, j, inside, LAYOUTS, SPAN)


def fits(longest: int, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether one launch does it all. It does not where there is nothing to copy."""
    return longest <= MAX_LENGTH and any(x.numel() for x in tensors)


def launch(
    kernel: Any,
    arguments: Sequence[torch.Tensor | None],
    cu_seqlens: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    tensors: Sequence[torch.Tensor],
    **meta: Any,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run a selection kernel that ends in `copy_picks`: the index, and the rows of each tensor."""
    kept = Ragged.from_lengths(keep, cu_seqlens.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=cu_seqlens.device)
    outputs = new_rows(kept.total, tensors)
    if kept.total:
        rows, warps = tile(longest)
        widths = WORDS_PER_WARP * warps, ODD_WORDS_PER_WARP * warps
        sources, targets, strides, layouts = copying(tensors, outputs, *widths)
        blocks = cdiv(kept.max_seqlen, PICKS)
        with on_device_of(cu_seqlens):
            kernel[(len(kept) * blocks, spans(layouts, SPAN))](
                *arguments,
                cu_seqlens,
                kept.cu_seqlens,
                index,
                sources,
                targets,
                blocks,
                strides,
                **meta,
                LAYOUTS=layouts,
                ROWS=rows,
                COLUMNS=COLUMNS,
                PICKS=PICKS,
                SPAN=SPAN,
                num_warps=warps,
                enable_fp_fusion=True,
            )
    return index, outputs


def fake(
    keep: Sequence[int], cu_seqlens: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Shapes and dtypes of what `launch` returns."""
    rows = sum(keep)
    return cu_seqlens.new_empty(rows), [x.new_empty((rows, *x.shape[1:])) for x in tensors]
