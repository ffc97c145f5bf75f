"""Presets: the budgets, horizons and names they refuse, and the fix that each error names."""

import math
import re

import numpy as np
import pytest

from vtfast.errors import PlanError
from vtfast.plan import Plan
from vtfast.presets import PRESETS, needs_horizon

ONE_STAGE = ["random", "uniform", "divprune", "fastv", "dart"]
TWO_STAGES = [name for name in PRESETS if "+" in name]
X_VTW = ["random+vtw", "divprune+vtw", "fastv+vtw", "dart+vtw"]


def first_layer(name):
    return 2 if name.startswith(("fastv", "dart")) else 0


def test_vtw_beyond_the_last_layer_is_refused():
    with pytest.raises(PlanError, match=r"horizon=32: .*pass 0 <= horizon < 32"):
        Plan.preset("vtw", num_layers=32, horizon=32)


@pytest.mark.parametrize("num_layers", [12, 28, 32])
@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith(("fastv", "dart"))])
def test_a_keep_below_the_layers_before_is_refused_with_the_smallest(name, num_layers):
    horizon = num_layers - 2 if needs_horizon(name) else None

    def plan(keep):
        return Plan.preset(name, num_layers=num_layers, keep=keep, horizon=horizon)

    with pytest.raises(PlanError, match="the smallest reachable keep is") as refused:
        plan(2 / num_layers)
    smallest = float(re.search(r"keep is ([\d.]+)$", str(refused.value))[1])
    assert smallest - 1e-4 <= 2 / num_layers < smallest
    assert plan(smallest).stages[0].keep > 0


@pytest.mark.parametrize("num_layers", [12, 28, 32])
@pytest.mark.parametrize("name", X_VTW)
def test_a_keep_above_the_horizon_is_refused_with_the_largest(name, num_layers):
    horizon = num_layers - 7

    def plan(keep):
        return Plan.preset(name, num_layers=num_layers, keep=keep, horizon=horizon)

    with pytest.raises(
        PlanError, match=f"at layer {horizon} of {num_layers}; the largest"
    ) as refused:
        plan(0.99)
    largest = float(re.search(r"keep is ([\d.]+)$", str(refused.value))[1])
    assert largest <= horizon / num_layers < largest + 1e-4
    assert plan(largest).stages[0].keep == pytest.approx(1, abs=1e-3)


def test_the_share_of_the_layers_before_the_horizon_is_reachable():
    for num_layers in range(4, 81):
        for horizon in range(1, num_layers):
            plan = Plan.preset(
                "divprune+vtw", num_layers=num_layers, keep=horizon / num_layers, horizon=horizon
            )
            assert plan.stages[0].keep == pytest.approx(1)


def test_a_keep_that_leaves_only_rounding_noise_is_refused():
    for num_layers in range(3, 200):
        with pytest.raises(PlanError, match="smallest reachable"):
            Plan.preset("fastv", num_layers=num_layers, keep=math.nextafter(2 / num_layers, 1))


def test_before_the_language_model_any_keep_is_reachable():
    plan = Plan.preset("divprune", num_layers=32, keep=1e-12)
    assert plan.counts(576) == (1,)


@pytest.mark.parametrize(
    "keep", [0.0, -0.5, 1.5, math.nan, 1, 0, 192, True, "0.5", np.int64(1), np.bool_(True)]
)
@pytest.mark.parametrize("name", ["divprune", "divprune+random", "vtw"])
def test_a_keep_that_is_no_share_is_refused(name, keep):
    horizon = 20 if needs_horizon(name) else None
    with pytest.raises(PlanError, match=r"a float in \(0, 1\].*1.0 keeps all.*a list of Prune"):
        Plan.preset(name, num_layers=32, keep=keep, horizon=horizon)


@pytest.mark.parametrize("name", TWO_STAGES)
def test_two_stages_need_a_horizon(name):
    assert needs_horizon(name)
    with pytest.raises(
        PlanError, match=f"needs a horizon; pass {first_layer(name)} < horizon < 32"
    ):
        Plan.preset(name, num_layers=32)


@pytest.mark.parametrize("name", ONE_STAGE)
def test_one_stage_has_no_horizon(name):
    assert not needs_horizon(name)
    with pytest.raises(
        PlanError, match=f"horizon=20: preset '{name}' has no horizon; leave it out"
    ):
        Plan.preset(name, num_layers=32, horizon=20)


@pytest.mark.parametrize("name", TWO_STAGES)
def test_a_horizon_lies_between_the_first_stage_and_the_last_layer(name):
    layer = first_layer(name)
    for horizon in (layer, 32, 40):
        with pytest.raises(PlanError, match=f"horizon={horizon}.*pass {layer} < horizon < 32"):
            Plan.preset(name, num_layers=32, horizon=horizon)


@pytest.mark.parametrize("horizon", [True, 20.0, "20", -1])
@pytest.mark.parametrize("name", ["divprune+random", "vtw"])
def test_a_horizon_that_is_no_layer_is_refused(name, horizon):
    with pytest.raises(PlanError, match=r"horizon=.*expected a whole number >= 0"):
        Plan.preset(name, num_layers=32, horizon=horizon)


def test_a_model_too_shallow_for_the_preset_is_refused():
    with pytest.raises(PlanError, match="prunes at layer 2 but the model has 2 decoder layers"):
        Plan.preset("fastv", num_layers=2)


@pytest.mark.parametrize("num_layers", [0, -1, 32.0, True, None])
def test_the_number_of_layers_is_a_number(num_layers):
    with pytest.raises(PlanError, match=r"num_layers=.*expected a whole number >= 1"):
        Plan.preset("divprune", num_layers=num_layers)


@pytest.mark.parametrize("name", ["", "DivPrune", "random+divprune", "divprune+", "vtw+random", 7])
def test_an_unknown_preset_is_refused_with_the_known_ones(name):
    with pytest.raises(PlanError, match="unknown preset") as refused:
        Plan.preset(name, num_layers=32)
    names = {preset.partition("+")[0] for preset in PRESETS}
    assert [name for name in names if name not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cdprunner", "cdpruner"),
        ("Divprune", "divprune"),
        ("topk", "fastv"),
        ("diversity", "divprune"),
    ],
)
def test_the_preset_that_may_have_been_meant_is_named(name, meant):
    with pytest.raises(PlanError, match=rf"unknown preset '{name}' \(did you mean '{meant}'\?\);"):
        Plan.preset(name, num_layers=32)


def test_vtw_that_would_drop_nothing_is_refused():
    with pytest.raises(PlanError, match=r"would drop nothing.*pass a keep below 0.9821"):
        Plan.preset("vtw", num_layers=28, keep=1.0)
