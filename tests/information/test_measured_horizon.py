"""Plans at a measured horizon: with one, without one, and on another model."""

import warnings
from dataclasses import dataclass

import pytest

from vtfast.errors import PlanError
from vtfast.plan import Plan


@dataclass(frozen=True)
class Horizon:
    layer: int | None
    num_layers: int = 12
    model_type: str = "llava"
    task: str = "reading a code"


def test_the_second_stage_is_put_where_the_horizon_is():
    plan = Plan.from_horizon(Horizon(9), 0.4, "divprune+vtw")
    assert plan.stages == Plan.preset("divprune+vtw", num_layers=12, keep=0.4, horizon=9).stages
    assert (plan.horizon, plan.horizon_source) == (9, "measured on reading a code")


def test_vtw_drops_everything_at_the_horizon():
    assert Plan.from_horizon(Horizon(9), name="vtw").tokens_per_layer(5, 12) == (5,) * 9 + (0,) * 3


@pytest.mark.parametrize("name", ["divprune+random", "fastv+random", "random+vtw"])
def test_without_a_horizon_the_first_stage_is_solved_again_for_the_same_keep(name):
    with pytest.warns(
        UserWarning, match=f"reading a code has no horizon: '{name}'".replace("+", r"\+")
    ):
        plan = Plan.from_horizon(Horizon(None), 0.4, name)
    alone = Plan.preset(name.partition("+")[0], num_layers=12, keep=0.4)
    assert (plan.stages, plan.keep, plan.horizon) == (alone.stages, 0.4, None)
    assert "horizon (none measured on reading a code)" in str(plan)


def test_a_missing_horizon_is_warned_about_once():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Plan.from_horizon(Horizon(None))
    assert len(said) == 1


@pytest.mark.parametrize("name", ["vtw", "divprune"])
def test_without_a_horizon_there_must_be_another_stage_to_plan(name):
    with pytest.raises(
        PlanError, match=r"has no horizon and preset .* cannot be planned without one"
    ):
        Plan.from_horizon(Horizon(None), name=name)


def test_a_preset_without_a_horizon_refuses_one():
    with pytest.raises(PlanError, match="has no horizon; leave it out"):
        Plan.from_horizon(Horizon(9), name="divprune")


def test_a_measured_horizon_can_be_passed_in_place_of_a_layer():
    plan = Plan.resolve(
        "divprune+random", num_layers=12, keep=0.4, horizon=Horizon(9), model_type="llava"
    )
    assert plan == Plan.from_horizon(Horizon(9), 0.4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_layers": 24, "model_type": "llava"}, "num_layers=12 and this one has 24"),
        (
            {"num_layers": 12, "model_type": "qwen2_5_vl"},
            "model_type='llava' and this one has 'qwen",
        ),
    ],
    ids=["layers", "type"],
)
def test_a_horizon_of_another_model_is_refused(model, message):
    with pytest.raises(PlanError, match=f"{message}.*; measure it on this model, or pass a layer"):
        Plan.resolve("divprune+random", horizon=Horizon(9), **model)
