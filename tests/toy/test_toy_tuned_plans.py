"""Tuned plans and the default on the bundled models: the committed figures, and their origin."""

import re

import pytest
from repository import ROOT
from toy_scores import bundled

import vtfast
from vtfast import toy
from vtfast.plan import Plan
from vtfast.plan_file import stage_of
from vtfast.toy import tuned_plans
from vtfast.toy.evaluate import dataset

QUESTIONS = 120


@pytest.fixture(scope="module")
def committed():
    return tuned_plans.read(ROOT / "bench/results/tuned_plans.json")


def test_every_task_of_every_model_is_there(committed):
    tasks = [*toy.TASKS, tuned_plans.ALL]
    found = [(row["model"], row["task"]) for row in committed]
    assert found == [(name, task) for name in tuned_plans.MODELS for task in tasks]


def test_tuned_plans_take_less_arithmetic_on_most_rows_and_lose_no_more(committed):
    """Of new questions, within four standard errors of the tolerance."""
    cheaper = 0
    for row in committed:
        tuned, default = row["tuned"], row["default"]
        if tuned is not None:
            new = tuned["new"]
            loss = (new["lost"] - new["gained"]) / new["questions"]
            spread = (new["lost"] + new["gained"] + 1) ** 0.5 / new["questions"]
            assert loss <= tuned_plans.MAX_LOSS + 4 * spread
            assert tuned["answers"] < tuned["plans"] * new["questions"] / 10
            cheaper += tuned["flops"] < (default["flops"] if default else 1)
    assert cheaper > 0.5 * len(committed)


def test_the_page_has_the_table(committed):
    assert tuned_plans.table(committed) in (ROOT / "docs/tuning.md").read_text()


def test_the_page_counts_the_rows_right(committed):
    page = (ROOT / "docs/tuning.md").read_text()
    cheaper = [
        row
        for row in committed
        if tuned_plans.flops(row["tuned"]) < tuned_plans.flops(row["default"])
    ]
    told = re.search(r"cheaper in (\d+) of (\d+) rows", page)
    assert told is not None
    assert (int(told[1]), int(told[2])) == (len(cheaper), len(committed))


@pytest.fixture(scope="module")
def row(request):
    model, processor = bundled("llava-small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_plans, "MAX_LOSS", 0.08)
        patch.setattr(tuned_plans, "METHODS", ["topk"])
        return tuned_plans.measure_task("llava-small", model, processor, "background", QUESTIONS)


@pytest.mark.parametrize("key", ["tuned", "default"])
def test_a_row_agrees_with_evaluate(row, key):
    model, processor = bundled("llava-small")
    new = dataset(processor, "background", QUESTIONS, tuned_plans.SEED + 1)
    plan = Plan(tuple(map(stage_of, row[key]["stages"])))
    found = vtfast.evaluate(model, new, plan, batch=60, progress=False).rows[1]
    counts = {"lost": found.lost, "gained": found.gained, "questions": QUESTIONS}
    assert row[key]["new"] == counts
    assert row[key]["flops"] == pytest.approx(found.flops_ratio, rel=1e-9)


def test_the_default_has_the_measured_horizon(row):
    assert row["horizon"] == row["default"]["stages"][1]["layer"]
    assert row["default"]["stages"][0]["method"] == "diversity"
