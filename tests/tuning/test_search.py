"""The rule of `vtfast.tune` on answers drawn from known probabilities: what it finds, promises."""

from itertools import pairwise

import numpy as np
import pytest

from vtfast.tuning import search as rule
from vtfast.tuning.search import FINALISTS, bounds_of, horizon_of, search


class Answers:
    """Answers of a model that is always right, and of plans that lose some, cheapest first."""

    def __init__(self, losses, n, seed=0, full=1.0):
        random = np.random.default_rng(seed)
        self.full = random.random(n) < full
        self.right = self.full & (random.random((len(losses), n)) >= np.array(losses)[:, None])
        self.asked = []

    def __call__(self, plan, questions):
        self.asked.append((plan, tuple(questions)))
        full, own = self.full[list(questions)], self.right[plan, list(questions)]
        lost, gained = int((full & ~own).sum()), int((own & ~full).sum())
        return lost, int(full.sum()), gained, int((~full).sum())


def found_in(answers, n, max_loss=0.01, confidence=0.95, **how):
    parts = range(n // 2), range(n // 2, n)
    costs = how.pop("costs", [1.2**number for number in range(len(answers.right))])
    return search(costs, answers, *parts, max_loss, confidence, **how)


def test_the_cheapest_plan_that_loses_nothing_is_found():
    answers = Answers([0.9, 0.5, 0.2, 0.1, 0.0, 0.05, 0.0, 0.0], 1000)
    found = found_in(answers, 1000)
    assert min(found.passed) == 4
    assert {4, 6, 7} == set(found.tested) == set(found.passed)


def test_a_plan_is_asked_only_until_it_is_seen_to_lose_too_much():
    answers = Answers([0.9, 0.0], 1000)
    found_in(answers, 1000)
    assert [len(q) for plan, q in answers.asked if plan == 0] == [8]
    sizes = [len(q) for plan, q in answers.asked if plan == 1]
    assert sizes == [8, 16, 32, 64, 128, 256, 500, 500]


def test_questions_asked_before_are_always_among_those_asked_again():
    """So that nothing is asked twice: answers are kept."""
    answers = Answers([0.02] * 4 + [0.0], 800)
    found_in(answers, 800)
    for (before, some), (plan, more) in pairwise(answers.asked):
        if before == plan and len(some) < len(more):
            assert more[: len(some)] == some


def test_no_question_held_out_is_asked_before_the_search_has_ended():
    answers = Answers([0.5, 0.02, 0.0, 0.0], 800)
    found_in(answers, 800)
    held = [min(questions) >= 400 for _, questions in answers.asked]
    assert held == sorted(held)
    assert not held[0]
    assert held[-1]


def test_the_final_word_ends_at_the_first_plan_that_fails():
    """Plans after it would be another try."""
    answers = Answers([0.0] * 5, 800)
    answers.right[:, 400:] &= np.random.default_rng(1).random((5, 400)) > 0.1
    found = found_in(answers, 800)
    assert found.passed == []
    assert len(found.tested) == 1


def test_the_safest_finalist_is_tested_first():
    answers = Answers([0.0] * 3, 1200)
    answers.right[0, 100] = False
    found = found_in(answers, 1200)
    assert list(found.tested) == [2, 1, 0]


def test_the_search_ends_with_a_few_finalists():
    found = found_in(Answers([0.0] * 40, 800), 800, costs=[2.0**number for number in range(40)])
    assert set(found.tried) == set(found.tested) == set(range(FINALISTS))


def test_the_next_finalist_costs_a_fifth_more_or_saves_a_fifth_less():
    answers = Answers([0.5] + [0.0] * 6, 800)
    found = found_in(answers, 800, costs=[0.1, 0.2, 0.23, 0.25, 0.28, 0.8, 0.845])
    assert set(found.tested) == {1, 3, 5, 6}
    assert {plan for plan, _ in answers.asked} == {0, 1, 3, 5, 6}  # the others are not even asked


def test_a_plan_is_out_as_soon_as_it_could_not_pass_any_more():
    """With three of 500 lost the bound is above a hundredth; with one it may still pass."""
    answers = Answers([0.0] * 2, 1000)
    answers.right[0, [3, 9, 14]] = False
    answers.right[1, 3] = False
    found_in(answers, 1000)
    assert [len(q) for plan, q in answers.asked if plan == 0] == [8, 16]
    assert 500 in [len(q) for plan, q in answers.asked if plan == 1]


def test_an_exhaustive_search_asks_every_plan_everything_and_finds_the_same():
    losses = [0.6, 0.3, 0.1, 0.05, 0.0, 0.02, 0.0]
    answers = Answers(losses, 1000)
    every = found_in(answers, 1000, exhaustive=True)
    asked = {plan: len(q) for plan, q in answers.asked if max(q) < 500}
    assert asked == dict.fromkeys(range(7), 500)
    assert every.passed == found_in(answers, 1000).passed


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_plans_that_lose_too_much_are_seldom_named(confidence):
    """120 plans that lose a little more than the tolerance, however many of them are tried."""
    n, wrong = 400, 0
    for seed in range(400):
        found = found_in(Answers([0.055] * 120, n, seed), n, 0.05, confidence)
        wrong += bool(found.passed)
    error = 1 - confidence
    assert wrong / 400 <= error + 4 * (error * confidence / 400) ** 0.5


def test_trying_plans_on_the_questions_of_the_final_word_would_fake_confidence(monkeypatch):
    """What the split is for: without it the promise above is broken most of the time."""
    n, wrong = 200, 0
    for seed in range(60):
        answers = Answers([0.055] * 120, n, seed)
        found = search([1.2**i for i in range(120)], answers, range(n), range(n), 0.05, 0.95)
        wrong += bool(found.passed)
    assert wrong > 30


def test_what_is_gained_counts_against_what_is_lost():
    answers = Answers([0.0], 1000, full=0.8)
    answers.right[0] = np.roll(answers.full, 1) | answers.full
    found = found_in(answers, 1000)
    lost, _, gained, _ = found.tested[0]
    assert (lost, found.passed) == (0, [0])
    assert gained > 50


@pytest.mark.parametrize(("losses", "layer"), [([0.9, 0.4, 0.0, 0.0], 3), ([0.0] * 4, 1)])
def test_the_horizon_is_the_first_layer_at_which_nothing_is_needed(losses, layer):
    assert horizon_of([1, 2, 3, 4], Answers(losses, 64), range(64), 0.01) == layer


def test_there_may_be_no_horizon():
    assert horizon_of([1, 2, 3], Answers([0.9, 0.8, 0.5], 64), range(64), 0.01) is None


def test_the_first_look_is_short_and_all_questions_are_the_last():
    assert rule._sizes(500) == [8, 16, 32, 64, 128, 256, 500]
    assert rule._sizes(8) == [8]
    assert rule._sizes(5) == [5]


def test_the_bounds_of_the_search_are_those_of_the_horizon():
    """300 answers of which none is lost rule out that one in a hundred is."""
    assert bounds_of((0, 300, 0, 0), 0.95)[1] <= 0.01 < bounds_of((0, 299, 0, 0), 0.95)[1]


@pytest.mark.parametrize(("right", "lost"), [(0.06, 1.0), (0.3, 0.3), (0.9, 0.05), (1.0, 0.02)])
def test_the_bounds_hold_for_the_loss_of_all_questions(right, lost):
    """Also where few are right; a bound given how many are was once broken half the time."""
    random, n, true = np.random.default_rng(0), 300, right * lost
    rights = random.binomial(n, right, 2000)
    counts = [(int(random.binomial(r, lost)), int(r), 0, int(n - r)) for r in rights]
    bounds = np.array([bounds_of(count, 0.95) for count in counts])
    spare = 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert (bounds[:, 1] < true).mean() <= 0.05 + spare
    assert (bounds[:, 0] > true).mean() <= 0.05 + spare
