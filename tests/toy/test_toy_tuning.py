"""The promise of `vtfast.tune`, on answers that a bundled model gave once to 5,004 questions."""

import pytest
from repository import ROOT
from toy_scores import bundled

from vtfast import toy
from vtfast.toy import tuning
from vtfast.toy.evaluate import dataset
from vtfast.toy.methods import right_answers
from vtfast.toy.model import family_of
from vtfast.tuning.space import space


@pytest.fixture(scope="module")
def recorded():
    return tuning.read(ROOT / "bench/results/tuning_answers.json.gz")


def test_the_answers_are_to_many_questions_under_every_plan_of_the_space(recorded):
    model, _ = bundled(tuning.MODEL)
    layers, horizon = model.config.text_config.num_hidden_layers, model.config.vtfast_horizon
    plans = space(layers, horizon, tuning.METHODS, tuning.KEEPS)
    assert {plan.stages for plan in recorded.plans} == {plan.stages for plan in plans}
    assert len(plans) >= 150
    assert recorded.right.shape == (len(plans), len(toy.TASKS) * tuning.SCENES)
    assert recorded.right.shape[1] >= 5000
    assert list(recorded.flops) == sorted(recorded.flops)


@pytest.mark.parametrize("task", ["digit", "count"])
def test_they_are_those_of_the_model(recorded, task):
    """The first 20 of a task, under three plans."""
    model, processor = bundled(tuning.MODEL)
    asked = dataset(processor, task, tuning.SCENES, tuning.SEED, family_of(model).SIZES)
    asked.examples, asked._answers = asked.examples[:20], asked._answers[:20]
    some = [0, len(recorded.plans) // 2, len(recorded.plans) - 1]
    plans = {str(number): recorded.plans[number].stages for number in some}
    found = right_answers(model, asked, plans, progress=False)
    first = list(toy.TASKS).index(task) * tuning.SCENES
    own = {str(n): int(recorded.right[n, first : first + 20].sum()) for n in some}
    assert found == own


@pytest.mark.parametrize("setting", tuning.SETTINGS)
def test_a_search_keeps_its_promise_at_the_cost_of_an_exhaustive_one(recorded, setting):
    """A hundred of the thousand searches of docs/tuning.md."""
    found = tuning.check(recorded, *setting, 100, progress=False)
    assert found.broken <= 0.05 + 4 * (0.05 * 0.95 / 100) ** 0.5
    assert found.none < 1
    assert found.cost <= 1.1
    assert found.answers <= 0.1


def test_the_page_has_the_table_of_the_same_settings():
    page = (ROOT / "docs/tuning.md").read_text()
    for max_loss, drawn in tuning.SETTINGS:
        assert f"| {100 * max_loss:g} % | {drawn} | 1000 | " in page
