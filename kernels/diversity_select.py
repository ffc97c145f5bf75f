"""Pick k rows of each segment that lie far from one another (DivPrune's greedy max-min).

With d(i, j) = 1 - cos(x_i, x_j): start from the row whose nearest other row is farthest, then
repeatedly add the row with the largest distance to its nearest picked row.

Source: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning" (CVPR 2025), re-derived.
Different from the authors' code on purpose: distances in fp32 whatever the input dtype, a row's
distance to itself never counts, picked rows are excluded (k distinct rows even among duplicates),
and only a running minimum is kept, so a step reads one row of distances instead of all picked ones.
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

_OP = "diversity_select"


def diversity_select(
    features: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick `keep[s]` mutually distant rows of each segment.

    Args:
        features: `[T, D]` of any floating dtype; only directions matter. A zero row has cosine 0 to
            all rows. A row whose squared norm is not finite in fp32 ranks below all finite rows
            (lowest first) and changes nobody's distances.
        segments: the cut of the T rows.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        return_order: also return the rows in the order they were picked.
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers, ascending; with `return_order` a pair of these and the same
        rows in pick order, segment after segment. Ties go to the lowest row.

    Raises:
        ValueError: a rank, row count, keep count or device that does not fit.
        TypeError: features that are not floating point, or another wrong type.

    >>> diversity_select(torch.eye(5), Ragged.from_lengths([5], "cpu"), [2]).shape
    torch.Size([2])
    """
    check_impl(_OP, impl, has_kernel=False)
    check_segments(_OP, "segments", segments)
    check_tensor(_OP, "features", features, ndim=2, device=segments.device)
    check_floating(_OP, "features", features)
    check_covers(_OP, "segments", segments, "features", len(features))
    keep = checked_keep(_OP, segments, keep)
    return reference.diversity_select(features, segments, keep, return_order=return_order)
