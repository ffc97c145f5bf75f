"""Pick the k best-scored rows of each segment.

Unlike `torch.topk` the answer is fully determined: ties go to the lowest row, -0.0 equals +0.0, and
NaN ranks below -inf, so a broken score is never preferred.
"""

from collections.abc import Sequence

import torch

from . import reference
from .checks import (
    check_covers,
    check_floating,
    check_impl,
    check_segments,
    check_tensor,
    checked_keep,
)
from .ragged import Ragged

_OP = "topk_select"


def topk_select(
    scores: torch.Tensor, segments: Ragged, keep: Sequence[int], *, impl: str = "auto"
) -> torch.Tensor:
    """Pick the `keep[s]` rows with the largest scores in each segment.

    Args:
        scores: `[T]` of any floating dtype, compared exactly.
        segments: the cut of the T rows.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending (by row, not by score).

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit.
        TypeError: scores that are not floating point, or another wrong type.

    >>> topk_select(torch.tensor([1., 3., 3., 0.]), Ragged.from_lengths([3, 1], "cpu"), [1, 1])
    tensor([1, 3], dtype=torch.int32)
    """
    check_impl(_OP, impl, has_kernel=False)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "scores", scores, ndim=1, device=segments.device)
    check_floating(_OP, "scores", scores)
    check_covers(_OP, "segments", segments, "scores", len(scores))
    keep = checked_keep(_OP, segments, keep)
    return reference.topk_select(scores, segments, keep)
