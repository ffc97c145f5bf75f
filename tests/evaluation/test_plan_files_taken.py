"""A plan file wherever a plan is taken: `patch`, `evaluate`, `vtfast run`, lmms-eval's classes."""

import json

import pytest
from command import answered, call, refused
from lmms_stand_in import stand_ins
from model_runs import logits_of
from tiny_models import FAMILIES
from toy_scores import bundled

import vtfast
from vtfast import InputError, PlanError, Prune
from vtfast.plan import Measured, Plan
from vtfast.toy.evaluate import dataset

STAGES = [Prune(0, "random", 0.5), Prune(3, "drop", 0)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine+random.json"  # a preset of two stages has a plus in its name
    Plan(STAGES, "mine", seed=7).save(path)
    return path


def kept_by(plan, **how):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, plan, record=True, **how) as handle:
        logits_of(family, model, inputs)
    return [rows.tolist() for rows in handle.report.kept[0]]


def test_the_seed_is_the_callers_then_the_files_then_0(path):
    expected = {seed: kept_by(STAGES, seed=seed) for seed in (0, 7, 8)}
    assert kept_by(path) == kept_by(str(path)) == expected[7]
    assert kept_by(path, seed=0) == expected[0]
    assert kept_by(path, seed=8) == expected[8]
    assert kept_by(STAGES) == expected[0]
    assert expected[0] != expected[7] != expected[8]


@pytest.mark.parametrize("given", [{"keep": 0.5}, {"horizon": 4}])
def test_patch_refuses_keep_and_horizon_with_a_file(path, given):
    model = FAMILIES["llava"].build()
    with pytest.raises(PlanError, match="goes with a preset name only, and the plan is a file"):
        vtfast.patch(model, str(path), **given)
    assert not vtfast.is_patched(model)


def test_a_plan_of_another_model_is_refused(path):
    Plan(STAGES, measured=Measured("llava", 12, "digit", 9, 0.0, 0.0, 0.3, 0.95)).save(path)
    model = FAMILIES["qwen"].build()
    with pytest.raises(PlanError, match=r"num_layers=12|model_type='llava'"):
        vtfast.patch(model, path)
    assert not vtfast.is_patched(model)


def test_evaluate_takes_files_beside_presets(path, tmp_path):
    model, processor = bundled("llava-small")
    asked = dataset(processor, "digit", 6, 0)
    how = {"progress": False}
    found = vtfast.evaluate(model, asked, [str(path), "uniform"], keep=0.5, **how)
    assert [row.name for row in found.rows] == ["unpruned", "mine", "uniform 0.5"]
    own = vtfast.evaluate(model, asked, {"mine": STAGES}, seed=7, **how)
    assert found.of("mine").correct == own.of("mine").correct
    for given in ({"keep": 0.5}, {"horizon": 4}):
        with pytest.raises(InputError, match="go with presets, and no plan is one"):
            vtfast.evaluate(model, asked, path, **given, **how)
    log = tmp_path / "run.jsonl"
    vtfast.evaluate(model, asked, path, log=log, **how)
    with pytest.raises(InputError, match="plans"):  # the same stages, other picks
        vtfast.evaluate(model, asked, {"mine": STAGES}, log=log, **how)


def test_a_sweep_takes_the_method_and_options_of_the_first_stage(tmp_path):
    model, processor = bundled("llava-small")
    asked = dataset(processor, "background", 12, 0)
    stage, path = Prune(2, "diversity", 0.9, distinct="minmax"), str(tmp_path / "mine.json")
    Plan([stage, Prune(5, "random", 0.5)]).save(path)
    how = {"layers": [0], "keep": 0.25, "retained": False, "progress": False}
    found = vtfast.information.sweep(model, asked, [path, "diversity"], **how)
    moved = {"mine": [Prune(0, "diversity", 0.25, distinct="minmax")]}
    moved["plain"] = [Prune(0, "diversity", 0.25)]
    expected = vtfast.evaluate(model, asked, moved, progress=False)
    assert found.of(path, 0.25)[0].accuracy == expected.of("mine").accuracy
    assert found.of("diversity", 0.25)[0].accuracy == expected.of("plain").accuracy
    assert expected.of("mine").accuracy != expected.of("plain").accuracy
    log = tmp_path / "sweep.jsonl"
    vtfast.information.sweep(model, asked, [path], log=log, **how)
    Plan([Prune(0, "diversity", 0.9)]).save(path)
    with pytest.raises(InputError, match="methods"):  # other options under the same name
        vtfast.information.sweep(model, asked, [path], log=log, **how)
    Plan([stage], measured=Measured("llava", 12, "digit", 9, 0.0, 0.0, 0.3, 0.95)).save(path)
    with pytest.raises(PlanError, match="num_layers=12 and this one has 8"):
        vtfast.information.sweep(model, asked, [path], **how)


def test_run_and_evaluate_take_files_as_commands(path, tmp_path):
    vtfast.toy.scenes(1, seed=0, task="digit")[0][0].save(tmp_path / "scene.png")
    asked = ("--model", "toy-llava-small", "--device", "cpu", "--plan", str(path))
    shown = ("--image", str(tmp_path / "scene.png"), "--prompt", "read the code .", "--json")
    found = json.loads(answered("run", *asked, *shown).stdout)["plan"]
    assert (found["name"], found["seed"], len(found["stages"])) == ("mine", 7, 2)
    rows = json.loads(
        answered("evaluate", *asked, "--task", "digit", "--samples", "2", "--json").stdout
    )["rows"]
    assert rows[1]["name"] == "mine"
    assert "goes with a preset name only" in refused(call("run", *asked, *shown, "--keep", "0.5"))
    missing = str(tmp_path / "none.json")
    assert "cannot be read" in refused(call("run", *asked[:-1], missing, *shown))
    assert "unknown preset" in refused(call("demo", "--plan", missing))


def test_lmms_eval_takes_files(path):
    with stand_ins() as classes:
        assert classes.LlavaHf(plan=str(path)).vtfast.plan.name == "mine"
        path.write_text("{}")
        with pytest.raises(PlanError, match="no plan of vtfast"):
            classes.LlavaHf(plan=str(path))
