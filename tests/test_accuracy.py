"""What pruning does to answers: the bundled LLaVA on pinned scenes.

Checkpoint and scenes are pinned, so these numbers only move when the package does; every bound is
at least four standard errors of a difference away from what was measured. Accuracy is not monotone
in the number of tokens kept, and nothing here assumes that it is.
"""

import pytest
from toy_scores import bundled, score

FEW, FEWER = 13, 6  # of 64 visual tokens: 80 % and 90 % dropped


def horizon() -> int:
    return bundled()[0].config.vtfast_horizon


def test_diversity_reads_the_digit_random_does_not():
    assert score("digit", (0, "diversity", FEW)) - score("digit", (0, "random", FEW)) >= 0.25


def test_diversity_finds_the_shape_whose_colour_is_asked_random_does_not():
    diverse, random = (score("shape_colour", (0, m, FEW)) for m in ("diversity", "random"))
    assert diverse - random >= 0.15


def test_random_sees_the_background_that_diversity_avoids():
    """The background is the redundant token, which a diverse choice leaves out."""
    diverse, random = (score("background", (0, m, FEW)) for m in ("diversity", "random"))
    assert random - diverse >= 0.1


def test_beyond_the_horizon_random_is_as_good_as_diversity():
    diverse, random = (score("code", (horizon(), m, FEWER)) for m in ("diversity", "random"))
    assert abs(diverse - random) <= 0.03


@pytest.mark.parametrize("task", ["background", "digit", "code"])
def test_dropping_everything_at_the_horizon_costs_little(task):
    assert score(task) - score(task, (horizon(), "drop", 0)) <= 0.03


def test_dropping_everything_well_before_the_horizon_costs_the_answer():
    assert score("code", (3, "drop", 0)) <= 0.05
