"""How well the bundled models answer on pinned scenes, and what pruning does to their answers.

Accuracies are exact matches of greedy generation on scenes whose seed training never saw.
Checkpoint and scenes are pinned, so these numbers only move when the package does; every bound is
at least four standard errors of a difference away from what was measured. Accuracy is not monotone
in the number of tokens kept, and nothing here assumes that it is.
"""

from statistics import fmean

import pytest
from toy_scores import bundled, score, score_at

from vtfast import toy
from vtfast.toy import qwen

FEW, FEWER = 0.2, 0.1  # of the visual tokens; of 64 they are 13 and 6

each_model = pytest.mark.parametrize("name", ["llava", "llava-small", "qwen", "qwen3"])


def horizon(name: str) -> int:
    return bundled(name)[0].config.vtfast_horizon


@pytest.mark.parametrize(
    ("name", "least"), [("llava", 0.97), ("llava-small", 0.97), ("qwen", 0.95), ("qwen3", 0.95)]
)
@pytest.mark.parametrize("task", toy.TASKS)
def test_fresh_scenes_are_answered_exactly(task, name, least):
    assert score(task, name=name) >= least


@pytest.mark.parametrize("name", ["qwen", "qwen3"])
@pytest.mark.parametrize("size", qwen.SIZES, ids=lambda size: "x".join(map(str, size)))
def test_the_qwens_answer_95_percent_at_every_size(size, name):
    assert fmean(score_at(size, task, None, name) for task in toy.TASKS) >= 0.95


@each_model
def test_diversity_reads_the_digit_random_does_not(name):
    diverse, random = (score("digit", (0, m, FEW), name) for m in ("diversity", "random"))
    assert diverse - random >= 0.25


@pytest.mark.parametrize("name", ["llava", "llava-small", "qwen"])  # the Qwen3-VL by less
def test_diversity_finds_the_shape_whose_colour_is_asked_random_does_not(name):
    diverse, random = (score("shape_colour", (0, m, FEW), name) for m in ("diversity", "random"))
    assert diverse - random >= 0.15


@pytest.mark.parametrize(
    ("name", "least"), [("llava", 0.1), ("llava-small", 0.03), ("qwen", 0.1), ("qwen3", 0.1)]
)
def test_random_sees_the_background_that_diversity_avoids(name, least):
    """The background is the redundant token, which a diverse choice leaves out."""
    diverse, random = (score("background", (0, m, FEW), name) for m in ("diversity", "random"))
    assert random - diverse >= least


@pytest.mark.parametrize(
    ("name", "task"),
    [("llava", "code"), ("llava-small", "code"), ("qwen", "digit"), ("qwen3", "shape_colour")],
)
def test_beyond_the_horizon_random_is_as_good_as_diversity(name, task):
    stages = [(horizon(name), method, FEWER) for method in ("diversity", "random")]
    diverse, random = (score(task, stage, name) for stage in stages)
    assert abs(diverse - random) <= 0.03


@pytest.mark.parametrize(
    ("name", "task"),
    [
        *(("llava", task) for task in ("digit", "code")),
        *(("llava-small", task) for task in ("digit", "code")),
        *(("qwen", task) for task in ("digit", "count")),
        *(("qwen3", task) for task in ("digit", "shape_colour")),
    ],
)
def test_dropping_everything_at_the_horizon_costs_little(name, task):
    assert score(task, None, name) - score(task, (horizon(name), "drop", 0), name) <= 0.03


@pytest.mark.parametrize(("name", "task"), [("qwen", "code"), ("qwen3", "shape_colour")])
def test_dropping_everything_a_layer_before_the_horizon_costs_answers(name, task):
    """Qwen2.5-VL still reads the code there, which has no horizon of its own."""
    early = (horizon(name) - 1, "drop", 0)
    assert score(task, None, name) - score(task, early, name) >= 0.05


@each_model
def test_dropping_everything_well_before_the_horizon_costs_the_answer(name):
    assert score("code", (3, "drop", 0), name) <= 0.05
