"""Select rows and gather them in one launch; `random_select` and `topk_select` share it.

The programs of one launch cannot wait for one another, so each program repeats the selection for
its whole segment, in registers, and then copies only its own block of selected rows and its own
span of columns. This saves a launch and repeats the selection once per block, which pays for small
batches, where launches cost more than selecting. It has not been timed on a GPU yet, so nothing in
vtfast uses it by default.

Limits: 4096 rows a segment. For longer segments, where a selection costs more than a launch, the
ops that take `gather=` select and gather in two launches; this is not a fallback.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ._launch import cdiv, on_device_of, tl, triton
from ._threshold import COLUMNS, nth_picks, segment_bounds, tile
from .gather import copy_plan, copy_rows, empty_outputs, num_spans
from .ragged import Ragged

MAX_LENGTH = 4096

# A program copies 32 rows x 512 words, in blocks of 8 loads of 16 bytes for each thread, or of 2
# loads of a word where rows are not aligned to 16 bytes: more row addresses would spill.
PICKS = 32
SPAN = 512
WORDS_PER_WARP, UNALIGNED_WORDS_PER_WARP = 32, 2  # of a block


@triton.jit
def block_of_program(cu_seqlens_ptr, cu_keep_ptr, blocks, PICKS: tl.constexpr):
    """Segment number, its first row, length, first output row and k; this program's first pick.

    Every segment has `blocks` programs whatever its k is; the first `blocks` are segment 0's.
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
    """Copy a block of selected rows in a span of columns; the first span also stores the index.

    first, first_out, k, first_pick: from `block_of_program`; above, equal: masks of the selection,
    as `store_picks` takes them.
    """
    place = first_pick + tl.arange(0, PICKS)
    inside = place < k
    row = first + nth_picks(above, equal, k, place, ROWS, COLUMNS)
    j = first_out.to(tl.int64) + place
    if tl.program_id(1) == 0:
        tl.store(index_ptr + j, row, mask=inside)
    row = row.to(tl.int64)
    copy_rows(x_ptrs, out_ptrs, strides, row, j, inside, LAYOUTS, SPAN)


def fits(longest: int, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether one launch can select and gather; False too if there is nothing to copy."""
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
    """Launch a selection kernel that ends in `copy_picks`; returns the index and gathered rows."""
    kept = Ragged.from_lengths(keep, cu_seqlens.device)
    index = torch.empty(kept.total, dtype=torch.int32, device=cu_seqlens.device)
    outputs = empty_outputs(kept.total, tensors)
    if kept.total:
        rows, warps = tile(longest)
        widths = WORDS_PER_WARP * warps, UNALIGNED_WORDS_PER_WARP * warps
        sources, targets, strides, layouts = copy_plan(tensors, outputs, *widths)
        blocks = cdiv(kept.max_seqlen, PICKS)
        with on_device_of(cu_seqlens):
            kernel[(len(kept) * blocks, num_spans(layouts, SPAN))](
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
    """Empty tensors with the shapes and dtypes that `launch` returns."""
    rows = sum(keep)
    return cu_seqlens.new_empty(rows), [x.new_empty((rows, *x.shape[1:])) for x in tensors]
