"""How well counts of samples determine a share: exact binomial bounds, and Wilson's interval.

A bootstrap cannot say this: where no sample of n lost its answer, no resampled one did, and the
interval has no width. Yet a share of about 3/n of all samples may be lost without one among n.
"""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

# Of the error allowed to a bound of a loss, the part that goes to the gained answers.
_GAINED = 0.01
_MOST = 10**6  # samples that `samples_to_show` considers


@lru_cache(maxsize=2**14)  # a search over plans asks for the same counts again and again
def upper_share(count: int, n: int, confidence: float) -> float:
    """The largest share of all samples that `count` of n allow (Clopper and Pearson, one-sided)."""
    if count >= n:
        return 1.0
    if count == 0:
        return 1 - (1 - confidence) ** (1 / n)
    k = np.arange(count + 1)
    ways = np.array([-math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(count + 1)])
    ways += math.lgamma(n + 1)
    low, high = count / n, 1.0
    for _ in range(50):
        share = (low + high) / 2
        at_most = np.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share)).sum()
        low, high = (share, high) if at_most > 1 - confidence else (low, share)
    return high


def lower_share(count: int, n: int, confidence: float) -> float:
    """The smallest share of all samples that `count` of n allow; see `upper_share`."""
    return 1 - upper_share(n - count, n, confidence) if n else 0.0


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share of n trials; z = 1.96 for 95 %, two-sided."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may leave [0, 1]


def two_sided(confidence: float) -> float:
    """The z of `wilson` for a confidence."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def loss_bounds(
    lost: int, right: int, gained: int, wrong: int, confidence: float
) -> tuple[float, float]:
    """One-sided lower and upper bounds of the accuracy that is lost, as a share of all samples.

    Args:
        lost: answers that become wrong, of `right` ones.
        gained: answers that become right, of `wrong` ones.

    Both hold for any probability of losing and of gaining an answer, given which answers the full
    model has right. A hundredth of the allowed error goes to the answers gained: of losses alone
    one bound is then as sharp as that of a single share (1 % is ruled out by 300 answers, none of
    them lost, instead of 299).
    """
    n, (sure, surer) = right + wrong, _divided(confidence)
    most = upper_share(lost, right, sure) * right - lower_share(gained, wrong, surer) * wrong
    least = lower_share(lost, right, sure) * right - upper_share(gained, wrong, surer) * wrong
    return least / n, most / n


def bounds_of_true_loss(lost: int, gained: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bounds of the accuracy that is lost on all samples like these n.

    As `loss_bounds`, but it is not given which answers the full model has right: it also holds
    where few are, and is as sharp where all are.
    """
    sure, surer = _divided(confidence)
    most = upper_share(lost, n, sure) - lower_share(gained, n, surer)
    return lower_share(lost, n, sure) - upper_share(gained, n, surer), most


def _divided(confidence: float) -> tuple[float, float]:
    """The confidences of what is lost and of what is gained, whose errors add up."""
    error = 1 - confidence
    return 1 - (1 - _GAINED) * error, 1 - _GAINED * error


def samples_to_rule_out(loss: float, confidence: float) -> int:
    """How many right answers, none of which is lost, show that less than `loss` of them are."""
    return math.ceil(math.log((1 - _GAINED) * (1 - confidence)) / math.log1p(-loss))


def samples_to_show(
    lost: int, right: int, gained: int, wrong: int, tolerance: float, confidence: float
) -> int | None:
    """How many samples would show that the loss is within, or beyond, a share of the right answers.

    They are taken to lose and to gain answers as often as those seen. None: over a million.
    """
    n, is_within = right + wrong, lost - gained <= tolerance * right

    def shows(total: int) -> bool:
        a, b, c = (round(count * total / n) for count in (lost, right, gained))
        least, most = loss_bounds(a, b, min(c, total - b), total - b, confidence)
        limit = tolerance * b / total
        return b > 0 and (most <= limit if is_within else least > limit)

    most = n
    while not shows(most):
        if most > _MOST:
            return None
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if shows(middle) else (middle, most)
    return most
