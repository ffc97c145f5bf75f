"""`vtfast.tune` on a bundled model, from end to end: the plan, its file, the log, and refusals."""

import json

import pytest
from toy_scores import bundled
from two_processes import found_by_two

import vtfast
from vtfast import InputError, PlanError, Prune, StateError
from vtfast.plan import Plan
from vtfast.toy.evaluate import dataset
from vtfast.tuning import Tuned
from vtfast.tuning.search import bounds_of
from vtfast.vllm.settings import Settings

HOW = {"max_loss": 0.05, "methods": ["topk"], "batch": 20, "progress": False}
ASKED = 128


@pytest.fixture(scope="module")
def model():
    return bundled("llava-small")[0]


@pytest.fixture(scope="module")
def asked():
    return dataset(bundled("llava-small")[1], "background", ASKED, 5)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("tuning") / "run.jsonl"


@pytest.fixture(scope="module")
def found(model, asked, log):
    return vtfast.tune(model, asked, log=log, **HOW)


def test_the_plan_keeps_its_promise_on_new_questions(model, found):
    fresh = dataset(bundled("llava-small")[1], "background", 500, 6)
    row = vtfast.evaluate(model, fresh, found.plan, batch=50, progress=False).rows[1]
    assert (row.lost - row.gained) / 500 <= 0.05
    assert row.flops_ratio == pytest.approx(found.finalists[found.chosen].flops, rel=1e-9)
    assert row.average_tokens == pytest.approx(found.finalists[found.chosen].tokens)


def test_what_was_found_follows_from_the_answers_held_out(found):
    assert found.samples + found.held_out == ASKED
    for tried in found.finalists:
        assert tried.samples == found.held_out
        counts = tried.lost, tried.right, tried.gained, tried.wrong
        assert tried.bounds(0.95) == bounds_of(counts, 0.95)
    passed = [tried for tried in found.finalists if tried.bounds(0.95)[1] <= 0.05]
    assert found.finalists[found.chosen].flops == min(tried.flops for tried in passed)
    assert found.answers < found.plans * ASKED / 4


def test_the_plan_says_what_it_was_measured_on_and_goes_through_a_file(model, found, tmp_path):
    found.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan == found.plan
    about = plan.measured
    assert (about.model_type, about.num_layers, about.task) == ("llava", 8, "background")
    assert about.samples == found.held_out
    assert about.low <= about.loss <= about.high <= 0.05
    with vtfast.patch(model, tmp_path / "plan.json") as handle:
        assert handle.plan.stages == found.plan.stages


def test_the_result_is_read_back_drawn_and_printed(found, tmp_path):
    found.draw(tmp_path / "tuned.png")
    assert Tuned.of_record(json.loads((tmp_path / "tuned.json").read_text())) == found
    lines = str(found).splitlines()
    assert lines[0].startswith(found.finalists[found.chosen].name)
    assert sum(line.startswith("→ ") for line in lines) == 1


def test_a_log_answers_what_was_asked_before_whatever_is_asked_now(model, asked, found, log):
    again = vtfast.tune(model, asked, log=log, **HOW)
    assert again.answers == 0
    assert (again.plan, again.searched) == (found.plan, found.searched)
    stricter = vtfast.tune(model, asked, log=log, **{**HOW, "max_loss": 0.047})
    assert stricter.answers < found.answers / 2


def test_a_run_goes_on_where_it_was_stopped(model, asked, found, log, tmp_path):
    lines = log.read_bytes().splitlines(keepends=True)
    half = tmp_path / "half.jsonl"
    half.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:9])
    again = vtfast.tune(model, asked, log=half, **HOW)
    assert 0 < again.answers < found.answers
    assert (again.plan, again.searched) == (found.plan, found.searched)


def test_none_within_the_tolerance_is_an_answer_with_the_nearest(model, asked, monkeypatch):
    """Where every plan that there is drops the whole picture, or all but four of its tokens."""
    blind = [Plan((Prune(0, "drop", 0),), "blind"), Plan((Prune(0, "topk", 4),), "nearly blind")]
    monkeypatch.setattr("vtfast.tuning.find_plan.space", lambda *_, **__: blind)
    found = vtfast.tune(model, asked, **{**HOW, "horizon": 2})
    assert (found.plan, found.finalists) == (None, ())
    assert found.verdict.startswith("No plan is shown to lose at most 5 %")
    assert found.nearest.name in str(found)


def test_a_plan_for_vllm_is_one_that_its_settings_take(model, asked, tmp_path):
    how = {**HOW, "methods": ["uniform"], "max_loss": 0.2}
    found = vtfast.tune(model, asked, engine="vllm", **how)
    assert found.horizon is None
    for tried in (*found.searched, *found.finalists):
        assert [stage["layer"] for stage in tried.stages] == [0]
    found.plan.save(tmp_path / "plan.json")
    settings = Settings.read(str(tmp_path / "plan.json"), 8, "llava")
    assert settings.stage == found.plan.stages[0]
    for wrong, said in (
        ({"methods": ["topk"]}, "vLLM does not take .*topk.* pass diversity, uniform, random"),
        ({"engine": "sglang"}, "engine='sglang': pass one of transformers, vllm"),
        ({"horizon": 3}, "no stages inside the language model; leave it out"),
    ):
        with pytest.raises(InputError, match=said):
            vtfast.tune(model, asked, **{**how, "engine": "vllm", **wrong})


def test_the_objective_says_what_is_cheapest(model, asked, found, log):
    cache = vtfast.tune(model, asked, log=log, objective="cache", **HOW)
    costs = [tried.cache for tried in cache.searched]
    assert costs == sorted(costs)
    timed = vtfast.tune(model, asked, log=log, objective="time", **HOW)
    best = timed.finalists[timed.chosen]
    passed = [t for t in timed.finalists if t.bounds(0.95)[1] <= 0.05]
    assert best.time == min(t.time for t in passed)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"max_loss": 0.01},
            InputError,
            "of 128 questions 64 are held out.*pass 600 different",
        ),
        ({"max_loss": 0.0}, InputError, r"max_loss=0.0: expected a number in \(0, 1\)"),
        ({"confidence": 0.4}, InputError, r"confidence=0.4: expected a number in \(0.5, 1\)"),
        ({"objective": "speed"}, InputError, "objective='speed': pass one of flops, time, cache"),
        ({"methods": "topk"}, InputError, "methods='topk': pass a list"),
        ({"methods": []}, InputError, "pass a list of at least one name"),
        ({"methods": ["drop"]}, InputError, '"drop" keeps nothing and is always tried'),
        ({"methods": ["best"]}, PlanError, "method 'best' is unknown"),
        ({"horizon": 8}, PlanError, "horizon=8: pass a layer, 1 to 7"),
        ({"match": "close"}, InputError, "match='close'"),
        ({"batch": 0}, InputError, "batch=0: expected an int >= 1"),
        ({"max_loss": 1e-310}, InputError, "expected 1e-06 or more"),
        ({"methods": (m for m in ["topk"])}, InputError, "pass a list of at least one name"),
        ({"seed": 0.5}, PlanError, "seed=0.5: expected an int"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    model, asked, changes, error, message, monkeypatch
):
    monkeypatch.setattr(type(model), "generate", None)
    with pytest.raises(error, match=message):
        vtfast.tune(model, asked, **{**HOW, **changes})
    assert not vtfast.is_patched(model)


def test_questions_that_are_there_twice_count_once(model):
    few = dataset(bundled("llava-small")[1], "background", 30, 5)
    twice = vtfast.information.Dataset(few.processor, few.examples * 5, "background", ends=True)
    with pytest.raises(InputError, match="of 30 questions 15 are held out"):
        vtfast.tune(model, twice, **HOW)


def test_a_model_that_answers_nothing_right_is_refused(model, asked):
    with pytest.raises(InputError, match="answers none of the 128 questions right"):
        vtfast.tune(model, asked, match=lambda said, answer: False, **HOW)


def test_a_patched_model_is_refused(model, asked):
    with (
        vtfast.patch(model, [Prune(0, "random", 0.5)]),
        pytest.raises(StateError, match="the model is patched; call"),
    ):
        vtfast.tune(model, asked, **HOW)


def test_two_processes_share_the_questions_and_find_the_same(tmp_path, found):
    first, second = found_by_two("tuned_by_two", tmp_path)
    for name in ("chosen", "searched", "answers", "plans", "horizon"):
        assert first["found"][name] == second["found"][name]
    assert (first["again"], second["again"]) == (0, 0)
    own = found.record()
    tried = [(t["name"], t["lost"], t["gained"]) for t in first["found"]["finalists"]]
    assert tried == [(t["name"], t["lost"], t["gained"]) for t in own["finalists"]]
    asked = [file.read_text().count("\n") - 1 for file in tmp_path.glob("run.jsonl.*")]
    assert len(asked) == 2
    assert min(asked) > 0.4 * sum(asked)
