"""Which layer is the horizon, and whether the samples show it: see `vtfast.information.horizons`.

A curve is judged layer by layer. It is *within* the tolerance, or *beyond* it, where a bound says
so; where neither bound does, it is open, and only its mean is on one side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite

import numpy as np

from vtfast.information.bootstrap import Estimate, upper
from vtfast.information.shares import loss_bounds, lower_share, samples_to_show, upper_share


@dataclass(frozen=True, eq=False)
class Judged:
    """A curve against its tolerance, an entry for each layer.

    Attributes:
        within, beyond: bool, whether a bound shows it.
        near: bool, whether the mean is within.
        needed: fp64, how many samples would show what the mean says, if more are like these; 0
            where these do, inf where no number in reach does.
    """

    within: np.ndarray
    beyond: np.ndarray
    near: np.ndarray
    needed: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """The horizon, as the fields of that name of `vtfast.information.Horizon`."""

    layer: int | None
    shown: bool
    needed: int | None = None
    needed_maps: int | None = None


Counts = tuple[int, int, int, int]  # of answers: lost, right, gained, wrong; see `loss_bounds`


def count_answers(right: np.ndarray, right_without: np.ndarray) -> list[Counts]:
    """What `loss_bounds` takes, for every layer, of bool [samples] and [samples, layers]."""
    whole = int(right.sum())
    return [
        (int((right & ~without).sum()), whole, int((~right & without).sum()), len(right) - whole)
        for without in right_without.T
    ]


def estimate_loss(layers: Sequence[Counts], confidence: float) -> Estimate:
    """The lost accuracy by layer, with exact two-sided intervals."""
    means = [(lost - gained) / (right + wrong) for lost, right, gained, wrong in layers]
    low, high = zip(*(loss_bounds(*c, (1 + confidence) / 2) for c in layers), strict=True)
    return Estimate(tuple(means), low, high)


def estimate_share(count: int, n: int, confidence: float) -> Estimate:
    """A share with its exact two-sided interval."""
    sure = (1 + confidence) / 2
    return Estimate((count / n,), (lower_share(count, n, sure),), (upper_share(count, n, sure),))


def judge_answers(
    layers: Sequence[Counts], tolerance: float, confidence: float, surer: float
) -> Judged:
    """The lost accuracy, by exact bounds.

    Args:
        tolerance: a share of the right answers.
        confidence: of the upper bound. `surer`: of the lower one.
    """
    _, whole, _, wrong = layers[0]
    n = whole + wrong
    limit = tolerance * whole / n
    most = np.array([loss_bounds(*count, confidence)[1] for count in layers])
    least = np.array([loss_bounds(*count, surer)[0] for count in layers])
    near = np.array([lost - gained <= tolerance * whole for lost, _, gained, _ in layers])
    needed = [
        samples_to_show(*count, tolerance, confidence if low else surer)
        for count, low in zip(layers, near, strict=True)
    ]
    return Judged(
        within=(most <= limit) & (whole > 0),
        beyond=least > limit,
        near=near,
        needed=np.array([inf if m is None else m if m > n else 0 for m in needed]),
    )


def judge_means(
    values: np.ndarray, weights: np.ndarray, limit: float, confidence: float, surer: float
) -> Judged:
    """Means over samples of values [samples, layers]; bounds under `resample`'s weights.

    How many samples are needed is estimated from the width of the interval, which shrinks with the
    square root of their number.
    """
    most, least = (upper(values, weights, c) for c in (confidence, 1 - surer))
    mean = values.mean(0)
    near = mean <= limit
    distance, width = np.abs(mean - limit), np.where(near, most - mean, mean - least)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(width > distance, width / distance, 0.0)
    return Judged(most <= limit, least > limit, near, len(values) * ratio**2)


def decide(losses: Sequence[Judged], scores: Judged | None, layers: Sequence[int]) -> Outcome:
    """The outcome of the curves of the losses, and of the scores where there are any."""
    curves = [*losses, *([] if scores is None else [scores])]
    shown = first_from_which_on(np.all([c.within for c in curves], 0), layers)
    if shown is not None:
        return Outcome(shown, shown=True)
    if any(c.beyond[-1] for c in curves):
        return Outcome(None, shown=True)
    likely = first_from_which_on(np.all([c.near for c in curves], 0), layers)
    if likely is None:  # one curve that is shown to be beyond is enough
        easiest = min((c for c in curves if not c.near[-1]), key=lambda c: c.needed[-1])
        samples, maps = (0.0, easiest.needed[-1])[:: 1 if easiest is scores else -1]
    else:
        place = layers.index(likely)
        samples = max(c.needed[place:].max() for c in losses)
        maps = 0.0 if scores is None else scores.needed[place:].max()
    if not isfinite(samples + maps):
        return Outcome(likely, shown=False)
    return Outcome(likely, False, _rounded_up(samples), _rounded_up(maps))


def first_from_which_on(within: np.ndarray, layers: Sequence[int]) -> int | None:
    """The first of some layers from which on all are `within`, bool [layers]; None without one."""
    outside = np.flatnonzero(~within)
    first = outside[-1] + 1 if len(outside) else 0
    return layers[first] if first < len(layers) else None


def _rounded_up(number: float) -> int | None:
    """To two digits, as it is an estimate; None for 0."""
    step = 10 ** max(0, len(str(ceil(number))) - 2)
    return ceil(number / step) * step or None
