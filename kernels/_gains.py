"""What the greedy picks by gain share in plain PyTorch: weights, ties, and the order of the rest.

`_determinant.py` and `_coverage.py` say what a gain is. A row's rank is its weight; rows that are
not picked by their gain have one below zero.
"""

import torch

from ._numpy import np

# Gains of at least this part of the largest count as equal to it: far above the rounding of sums in
# fp32, so that equal gains are equal on every device.
NEARLY = 1 - 2.0**-17
NOT_FINITE, PICKED = -1.0, -2.0  # ranks of rows picked after all others, and of those never picked

# Products of weights between these and of gains per weight are normal numbers in fp32.
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100


def ranks(weights: torch.Tensor) -> torch.Tensor:
    """Weights in fp32, 0 for those below 2^-100, `NOT_FINITE` for NaN and from 2^100 on."""
    weights = weights.float()
    small = weights.masked_fill(weights < _SMALLEST, 0.0)
    return small.masked_fill_(~(weights.abs() < _LARGEST), NOT_FINITE)


def first_of_the_best(gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each line `[B, N]`, and the first column that is nearly as large: `[B, 1]`."""
    best = gain.amax(1, keepdim=True)
    near = gain >= torch.minimum(best, best * NEARLY)  # a gain below zero is nearly as large
    return best, near.to(torch.int8).argmax(1, keepdim=True)  # the first, as torch documents


def and_the_rest(picks: list[int], rank: np.ndarray, steps: int) -> np.ndarray:
    """All picks of one segment: those by gain, the other finite rows, then those not finite."""
    left = np.ones(len(rank), bool)
    left[picks] = False
    rest = (np.flatnonzero(left & (rank >= 0)), np.flatnonzero(rank == NOT_FINITE))
    return np.concatenate((np.array(picks, np.int64), *rest))[:steps]
