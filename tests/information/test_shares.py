"""Exact bounds of shares, and how many samples they ask for."""

from math import comb

import numpy as np
import pytest

from vtfast.information.shares import (
    loss_bounds,
    lower_share,
    samples_to_rule_out,
    samples_to_show,
    upper_share,
)


def at_most(count, n, share):
    return sum(comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(count + 1))


@pytest.mark.parametrize(("count", "n"), [(0, 160), (1, 160), (2, 500), (30, 40), (7, 8)])
def test_the_upper_bound_is_where_so_few_become_unlikely(count, n):
    bound = upper_share(count, n, 0.95)
    assert at_most(count, n, bound) == pytest.approx(0.05, rel=1e-6)
    assert lower_share(n - count, n, 0.95) == pytest.approx(1 - bound)


def test_the_ends_of_what_a_share_can_be():
    assert upper_share(8, 8, 0.95) == 1
    assert lower_share(0, 8, 0.95) == 0
    assert (upper_share(0, 0, 0.95), lower_share(0, 0, 0.95)) == (1, 0)


@pytest.mark.parametrize(
    ("loses", "gains"), [(0.02, 0.0), (0.1, 0.3), (0.05, 0.05), (0.004, 0.0)], ids=str
)
def test_bounds_of_a_loss_err_no_more_often_than_they_say(loses, gains):
    rng, right, wrong, missed = np.random.default_rng(0), 120, 40, np.zeros(2)
    true = (right * loses - wrong * gains) / (right + wrong)
    for _ in range(1000):
        lost, gained = rng.binomial(right, loses), rng.binomial(wrong, gains)
        low, high = loss_bounds(int(lost), right, int(gained), wrong, 0.9)
        missed += (low > true, high < true)
    assert (missed <= 130).all()  # 100, and 3 standard errors


def test_one_percent_is_ruled_out_by_300_answers_of_which_none_is_lost():
    assert samples_to_rule_out(0.01, 0.95) == 300
    assert loss_bounds(0, 300, 0, 0, 0.95)[1] <= 0.01 < loss_bounds(0, 299, 0, 0, 0.95)[1]


@pytest.mark.parametrize(
    "counts", [(0, 160, 0, 0), (1, 160, 0, 0), (3, 160, 0, 0), (1, 90, 1, 70), (0, 40, 2, 120)]
)
def test_so_many_samples_decide_and_fewer_do_not(counts):
    total, n = samples_to_show(*counts, 0.01, 0.95), counts[1] + counts[3]

    def decides(samples):
        lost, right, gained = (round(count * samples / n) for count in counts[:3])
        low, high = loss_bounds(lost, right, min(gained, samples - right), samples - right, 0.95)
        limit = 0.01 * right / samples
        return high <= limit if counts[0] - counts[2] <= 0.01 * counts[1] else low > limit

    assert decides(total)
    assert not decides(total - 1)


def test_a_loss_at_the_tolerance_is_decided_by_no_number_of_samples():
    assert samples_to_show(1, 100, 0, 0, 0.01, 0.95) is None
    assert samples_to_show(0, 0, 0, 100, 0.01, 0.95) is None
