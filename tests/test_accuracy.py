"""What pruning does to answers: the bundled LLaVA on pinned scenes.

Checkpoint and scenes are pinned, so these numbers only move when the package does; every bound is
at least four standard errors of a difference away from what was measured. Accuracy is not monotone
in the number of tokens kept, and nothing here assumes that it is.
"""

from collections.abc import Callable
from functools import cache

import pytest

import vtfast
from vtfast import Prune
from vtfast.toy.evaluate import accuracy

SEED = 4711
FEW, FEWER = 13, 6  # of 64 visual tokens: 80 % and 90 % dropped


@pytest.fixture(scope="module")
def score() -> Callable[..., float]:
    """Accuracy of a task with one prune stage, or without any."""
    model, processor = vtfast.toy.load("llava")
    horizon = model.config.vtfast_horizon

    @cache
    def measured(task: str, stage: tuple[int | str, str, int] | None = None, n: int = 500) -> float:
        if stage is None:
            return accuracy(model, processor, task, n, SEED)
        layer, method, keep = stage
        layer = horizon if layer == "horizon" else layer
        with vtfast.patch(model, [Prune(layer, method, keep)]):
            return accuracy(model, processor, task, n, SEED)

    return measured


def test_diversity_reads_the_digit_random_does_not(score: Callable[..., float]) -> None:
    diverse, random = (score("digit", (0, method, FEW)) for method in ("diversity", "random"))
    assert diverse - random >= 0.25


def test_diversity_finds_the_shape_s_colour_random_does_not(score: Callable[..., float]) -> None:
    diverse, random = (
        score("shape_colour", (0, method, FEW)) for method in ("diversity", "random")
    )
    assert diverse - random >= 0.15


def test_random_sees_the_background_diversity_avoids(score: Callable[..., float]) -> None:
    """The background is the redundant token, which a diverse choice leaves out."""
    random, diverse = (score("background", (0, method, FEW)) for method in ("random", "diversity"))
    assert random - diverse >= 0.1


def test_beyond_the_horizon_random_is_as_good_as_diversity(score: Callable[..., float]) -> None:
    diverse, random = (
        score("code", ("horizon", method, FEWER), n=1000) for method in ("diversity", "random")
    )
    assert abs(diverse - random) <= 0.03


@pytest.mark.parametrize("task", vtfast.toy.TASKS)
def test_dropping_everything_at_the_horizon_costs_little(
    score: Callable[..., float], task: str
) -> None:
    n = 1000 if task == "code" else 500
    assert score(task, n=n) - score(task, ("horizon", "drop", 0), n=n) <= 0.03


def test_before_the_horizon_dropping_everything_costs_the_answer(
    score: Callable[..., float],
) -> None:
    assert score("code", (3, "drop", 0)) <= 0.05
