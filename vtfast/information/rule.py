"""Where a horizon lies, once it is known at which layers everything is within tolerance."""

from collections.abc import Sequence

import numpy as np


def first_from_which_on(within: np.ndarray, layers: Sequence[int]) -> int | None:
    """The first of some layers from which on all are `within`, bool [layers]; None without one."""
    beyond = np.flatnonzero(~within)
    first = beyond[-1] + 1 if len(beyond) else 0
    return layers[first] if first < len(layers) else None


def interval(
    resampled: np.ndarray, layers: tuple[int, ...], confidence: float
) -> tuple[int | None, int | None]:
    """Where the horizon lies in `confidence` of the resampled data sets, bool [rounds, layers]."""
    backwards = np.cumprod(resampled[:, ::-1], axis=1).sum(1)  # layers within, from the last one
    outside = (1 - confidence) / 2
    places = len(layers) - backwards
    low, high = np.quantile(places, [outside, 1 - outside], method="nearest").astype(int).tolist()
    at = (*layers, None)
    return at[low], at[high]
