"""Plans saved and loaded: every part survives, and a bad file is refused by its name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtfast.errors import PlanError
from vtfast.plan import Measured, Plan, Prune

MEASURED = Measured("llava", 12, "digit", 600, 0.002, -0.004, 0.009, 0.95)
STAGES = [
    Prune(0, "diversity", 0.5, centre=True, distinct="sigmoid"),
    Prune(3, "topk", 0.25, score_layer="this"),
    Prune(9, "drop", 0),
]
KEEPS = st.floats(0, 1) | st.integers(0, 999)


def saved(tmp_path, **changes):
    """A good file, with some of its entries changed; None takes one out."""
    path = tmp_path / "plan.json"
    Plan(STAGES, "mine", seed=7, measured=MEASURED).save(path)
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
    return path


@given(layer=st.integers(0, 99), keep=KEEPS, seed=st.none() | st.integers(-(2**63), 2**63 - 1))
def test_what_was_saved_is_loaded(tmp_path_factory, layer, keep, seed):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    stage = Prune(layer, "my-method", keep, strength=0.1, words="ä", many=3, nothing=None, on=True)
    plan = Plan([stage], "mine", seed, MEASURED)
    plan.save(path)
    found = Plan.load(path)
    assert found == plan
    assert type(found.stages[0].keep) is type(stage.keep)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(STAGES),
        Plan.preset("divprune+random", num_layers=12, keep=0.3, horizon=8, horizon_source="mine"),
        Plan.preset("cenprune", num_layers=28),
        Plan.paper("dart+random", 64),
    ],
    ids=lambda plan: plan.name,
)
def test_a_plan_says_the_same_after_it_was_saved(tmp_path, plan):
    plan.save(tmp_path / "plan.json")
    found = Plan.load(str(tmp_path / "plan.json"))
    assert (found, str(found)) == (plan, str(plan))


def test_a_file_says_what_it_is_and_only_what_was_chosen(tmp_path):
    found = json.loads(saved(tmp_path).read_text())
    assert found["vtfast_plan"] == 1
    assert found["seed"] == 7
    assert found["measured"]["task"] == "digit"
    options = {"centre": True, "distinct": "sigmoid"}
    assert found["stages"][0] == {
        "layer": 0,
        "method": "diversity",
        "keep": 0.5,
        "options": options,
    }
    assert found["stages"][2]["options"] == {}


def test_nothing_is_left_of_a_file_that_cannot_be_written_and_the_old_one_stays(tmp_path):
    path = saved(tmp_path)
    before = path.read_text()
    with pytest.raises(PlanError, match=r"Prune\(0.*cannot be saved: option size is a tuple"):
        Plan([Prune(0, "my-method", 0.5, size=(2, 3))]).save(path)
    with pytest.raises(PlanError, match=r"no/plan.json cannot be written: No such file"):
        Plan(STAGES).save(tmp_path / "no" / "plan.json")
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


STAGE = {"layer": 0, "method": "random", "keep": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vtfast_plan": None}, "it is no plan of vtfast; pass what Plan.save wrote"),
        ({"vtfast_plan": 2}, "it is of version 2, and this vtfast reads 1; install"),
        ({"strength": 3}, "unknown entries strength; known: horizon, "),
        ({"stages": None}, "stages=None: expected a list of stages"),
        ({"stages": []}, "a plan without stages prunes nothing"),
        ({"stages": ["random"]}, "stage 'random': expected layer, method, keep and options"),
        ({"stages": [{"layer": 0, "keep": 0.5}]}, "expected layer, method, keep and options"),
        ({"stages": [{**STAGE, "depth": 1}]}, "expected layer, method, keep and options"),
        ({"stages": [{**STAGE, "options": 3}]}, "options=3: expected an object of"),
        ({"stages": [{**STAGE, "keep": 1.5}]}, "keep=1.5: a float is a fraction"),
        ({"stages": [{**STAGE, "options": {"size": 3}}]}, "'random' has no option 'size'"),
        ({"stages": [STAGE, STAGE]}, "layers must strictly increase"),
        (
            {"stages": [{**STAGE, "options": {"layer": 3}}]},
            "expected an object of a method's option",
        ),
        ({"vtfast_plan": True}, "it is of version True"),
        ({"measured": {**vars(MEASURED), "confidence": 7.0}}, "confidence in (0.5, 1)"),
        ({"name": 3}, "name=3: expected a string"),
        ({"seed": 1.5}, "seed=1.5: expected an int that fits 64 bits"),
        ({"seed": 2**63}, "expected an int that fits 64 bits"),
        ({"horizon": "deep"}, "horizon='deep': expected int"),
        ({"measured": {"task": "digit"}}, "measured={'task': 'digit'}: expected model_type, num"),
        ({"measured": {**vars(MEASURED), "loss": "none"}}, "loss='none' in measured: expected flo"),
        (
            {"measured": {**vars(MEASURED), "samples": True}},
            "samples=True in measured: expected in",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path, changes, message):
    path = saved(tmp_path, **changes)
    with pytest.raises(PlanError) as refused:
        Plan.load(path)
    assert str(refused.value).startswith(f"plan {path}: ")
    assert message in str(refused.value)


def test_what_is_no_file_or_no_json_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"plan .*none.json cannot be read: No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("keep = 0.5")
    with pytest.raises(PlanError, match=r"text.json is no JSON.*pass what Plan.save wrote"):
        Plan.load(tmp_path / "text.json")


def test_numbers_that_json_has_not_are_neither_read_nor_written(tmp_path):
    (tmp_path / "nan.json").write_text('{"vtfast_plan": 1, "keep": NaN, "stages": []}')
    with pytest.raises(PlanError, match=r"nan.json is no JSON: NaN is no number"):
        Plan.load(tmp_path / "nan.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(PlanError, match=r"deep.json is no JSON"):
        Plan.load(tmp_path / "deep.json")
    plan = Plan([Prune(0, "my-method", 0.5, strength=float("nan"))])
    with pytest.raises(PlanError, match="cannot be written: Out of range float"):
        plan.save(tmp_path / "plan.json")


def test_only_a_json_file_is_written(tmp_path):
    """Another name would be taken for a preset."""
    for name in ("", ".", "plan"):
        with pytest.raises(PlanError, match=r"pass a name that ends in .json"):
            Plan(STAGES).save(name)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PlanError, match=r"folder.json is a folder"):
        Plan(STAGES).save(tmp_path / "folder.json")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.json"]


def test_another_model_is_refused(tmp_path):
    path = saved(tmp_path)
    assert Plan.resolve(path, num_layers=12, model_type="llava").seed == 7
    with pytest.raises(PlanError, match="num_layers=12 and this one has 32; tune a plan"):
        Plan.resolve(str(path), num_layers=32, model_type="llava")
    with pytest.raises(PlanError, match="model_type='llava' and this one has 'qwen2_5_vl'"):
        Plan.resolve(Plan.load(path), num_layers=12, model_type="qwen2_5_vl")


@pytest.mark.parametrize("given", [{"keep": 0.5}, {"horizon": 8}])
def test_keep_and_horizon_with_a_file_are_refused(tmp_path, given):
    with pytest.raises(PlanError, match="goes with a preset name only, and the plan is a file"):
        Plan.resolve(saved(tmp_path), num_layers=12, **given)
