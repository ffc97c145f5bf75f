"""Right answers under many plans, from a forward each, and what docs/choosing.md says of them."""

import json

import pytest
from repository import ROOT
from toy_scores import bundled

import vtfast
from vtfast import Prune
from vtfast.toy import methods
from vtfast.toy.evaluate import dataset
from vtfast.toy.model import family_of

MEASURED = json.loads((ROOT / "bench/results/choosing.json").read_text())
PLANS = {
    "unpruned": None,
    "diversity": [Prune(0, "diversity", 0.25)],
    "scope": [Prune(0, "scope", 0.5)],
    "topk": [Prune(2, "topk", 0.25)],
    "random": [Prune(0, "random", 0.5)],
}


@pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
def test_they_are_those_that_generate_gives(name):
    model, processor = bundled(name)
    asked = dataset(processor, "code", 24, 99, family_of(model).SIZES)
    pruned = {key: plan for key, plan in PLANS.items() if plan is not None}
    found = vtfast.evaluate(model, asked, pruned, progress=False)
    expected = {row.name: row.correct for row in found.rows}
    assert methods.right_answers(model, asked, PLANS, progress=False) == expected
    assert len(set(expected.values())) > 2


def test_a_log_is_continued_under_new_plans_and_with_more_questions(tmp_path, monkeypatch):
    model, processor = bundled("llava")
    few, more = (dataset(processor, "digit", n, 99, family_of(model).SIZES) for n in (6, 9))
    expected = methods.right_answers(model, more, PLANS, progress=False)
    ran, right = [], methods._right
    monkeypatch.setattr(
        methods, "_right", lambda *args: ran.append((len(args[2]), len(args[3]))) or right(*args)
    )
    monkeypatch.setattr(methods, "_TOGETHER", 3)
    log = tmp_path / "digit.jsonl"
    first = {name: PLANS[name] for name in ("unpruned", "scope")}
    methods.right_answers(model, few, first, log, progress=False)
    assert ran == [(2, 3), (2, 3)]
    ran.clear()
    assert methods.right_answers(model, more, PLANS, log, progress=False) == expected
    assert ran == [(3, 3), (3, 3), (5, 3)]
    ran.clear()
    assert methods.right_answers(model, more, PLANS, log, progress=False) == expected
    assert ran == []


@pytest.mark.parametrize("method", ["diversity", "cdpruner", "scope", "visionzip", "vispruner"])
@pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
def test_both_layouts_keep_the_same_tokens_and_answer_the_same(name, method):
    model, processor = bundled(name)
    sizes = family_of(model).SIZES
    batch = dataset(processor, "digit", 5, 7, sizes).batch(range(5), model.device)
    seen = []
    for path in ("padded", "packed"):
        plan = [Prune(0, method, 0.5), Prune(4, method, 0.2)]
        with vtfast.patch(model, plan, path=path, record=True) as handle:
            out = model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
        kept = {layer: [k.tolist() for k in rows] for layer, rows in handle.report.kept.items()}
        seen.append((kept, out.tolist()))
        assert handle.report.path == path
    assert seen[0] == seen[1]


def share(model, task, plan):
    found = MEASURED[model]
    return 100 * found["right"][task][plan] / found["scenes_per_task"]


def test_the_measured_table_has_every_plan_task_and_model():
    assert list(MEASURED) == ["llava", "qwen", "qwen3"]
    for found in MEASURED.values():
        assert found["scenes_per_task"] >= 500
        assert list(found["right"]) == list(vtfast.toy.TASKS)
        assert all(list(counts) == list(methods.PLANS) for counts in found["right"].values())


def test_the_page_on_methods_says_what_was_measured():
    """Its main sentences, with four standard errors to spare where one method is called ahead."""
    spare = 12  # points; a difference of two shares of 500 has a standard error of at most 3.2
    for model in ("qwen", "qwen3"):
        reads = share(model, "code", "… distinct, minmax 0.125")
        assert reads - share(model, "code", "diversity 0.125") > spare
        assert share(model, "code", "topk (layer 2) 0.125") > 80
        for task in ("shape", "shape_colour"):
            lost = share(model, task, "random 0.5") - share(model, task, "visionzip 0.5")
            assert lost > spare
    for model in ("llava", "qwen3"):
        others = [m for m in methods.METHODS if m not in ("random", "uniform")]
        best = max(share(model, "count", f"{method} 0.5") for method in others)
        assert share(model, "count", "random 0.5") > best
    better = ("dart (layer 2) 0.5", "topk (layer 2) 0.5", "vispruner 0.5", "cdpruner 0.5")
    least = min(share("qwen", "count", plan) for plan in better)
    assert least > share("qwen", "count", "random 0.5") + spare
    for model in MEASURED:
        assert (
            share(model, "digit", "diversity 0.25") - share(model, "digit", "random 0.25") > spare
        )
        named = share(model, "background", "… distinct, minmax 0.125")
        assert share(model, "background", "random 0.125") - named > 4 * spare
    assert share("qwen", "shape", "cdpruner 0.25") > share("qwen", "shape", "diversity 0.25")
    colours = [share("qwen3", "shape_colour", f"{m} 0.25") for m in ("random", "cdpruner")]
    assert colours[0] - colours[1] > spare
