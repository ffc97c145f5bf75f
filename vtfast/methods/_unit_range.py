"""Mean cosines of each picture's tokens, scaled to lie between 0 and 1."""

import torch
from torch import Tensor

from vtfast.kernels.ragged import Ragged

ROUNDING = 1e-6  # mean cosines that differ by less are equal


def unit_range(scores: Tensor, segments: Ragged) -> Tensor:
    """`(scores - smallest) / (largest - smallest)` of each segment, fp32 `[n]`; 1 where all are
    equal up to `ROUNDING`. What is not finite becomes NaN and does not count.

    >>> unit_range(torch.tensor([1.0, 3.0, 2.0, 5.0]), Ragged.from_lengths([3, 1], "cpu"))
    tensor([0.0000, 1.0000, 0.5000, 1.0000])
    """
    scores = scores.float()
    scores = scores.masked_fill(~scores.isfinite(), torch.nan)
    if not segments.total:
        return scores
    known = ~scores.isnan()
    low = segments.pad(scores.masked_fill(~known, torch.inf), torch.inf).amin(1)
    high = segments.pad(scores.masked_fill(~known, -torch.inf), -torch.inf).amax(1)
    of_token = segments.cells[0]
    low, width = low[of_token], (high - low)[of_token]
    return torch.where(known & (width < ROUNDING), 1.0, (scores - low) / width)
