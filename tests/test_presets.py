"""Presets: the shares they solve for, the layers they prune at, and what they refuse."""

import itertools

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from vtfast.errors import PlanError
from vtfast.plan import Plan, Prune
from vtfast.presets import PRESETS, needs_horizon

SETTINGS = examples(300)
FIRST = {"random": ("random", 0), "divprune": ("diversity", 0), "fastv": ("topk", 2)}
ONE_STAGE = ["random", "divprune", "fastv"]
X_RANDOM = ["divprune+random", "fastv+random"]
X_VTW = ["random+vtw", "divprune+vtw", "fastv+vtw"]


def split(name):
    first, _, then = name.partition("+")
    return FIRST[first] + (then,)


def test_the_presets_are_those_documented():
    assert set(PRESETS) == {*ONE_STAGE, "vtw", *X_RANDOM, *X_VTW}


@pytest.mark.parametrize("name", [*ONE_STAGE, *X_RANDOM, *X_VTW])
def test_the_first_stage_is_the_methods_own(name):
    method, layer, then = split(name)
    stage = Plan.preset(name, num_layers=32, keep=0.5, horizon=20 if then else None).stages[0]
    assert (stage.method, stage.layer) == (method, layer)


@pytest.mark.parametrize("name", [*X_RANDOM, *X_VTW])
def test_the_second_stage_is_at_the_horizon(name):
    stage = Plan.preset(name, num_layers=32, keep=0.5, horizon=20).stages[1]
    assert (stage.method, stage.layer) == ("random" if name in X_RANDOM else "drop", 20)


@pytest.mark.parametrize("name", [*PRESETS])
def test_half_is_kept_unless_told_otherwise(name):
    horizon = 20 if needs_horizon(name) else None
    default = Plan.preset(name, num_layers=32, horizon=horizon)
    assert default == Plan.preset(name, num_layers=32, keep=0.5, horizon=horizon)
    assert default.keep == 0.5


@SETTINGS
@given(keep=st.floats(0.01, 1), num_layers=st.integers(2, 80), data=st.data())
def test_divprune_random_follows_its_formula(keep, num_layers, data):
    horizon = data.draw(st.integers(1, num_layers - 1))
    plan = Plan.preset("divprune+random", num_layers=num_layers, keep=keep, horizon=horizon)
    f1 = min(1, keep * num_layers / (horizon + (num_layers - horizon) / 8))
    f2 = (keep * num_layers - f1 * horizon) / (num_layers - horizon)
    assert [stage.keep for stage in plan.stages] == pytest.approx([f1, f2])


@SETTINGS
@given(
    name=st.sampled_from([*ONE_STAGE, *X_RANDOM, *X_VTW]),
    keep=st.floats(0.01, 1),
    num_layers=st.integers(4, 80),
    data=st.data(),
)
def test_the_shares_average_to_keep_over_all_layers(name, keep, num_layers, data):
    _, layer, then = split(name)
    horizon = data.draw(st.integers(layer + 1, num_layers - 1)) if then else None
    try:
        plan = Plan.preset(name, num_layers=num_layers, keep=keep, horizon=horizon)
    except PlanError:
        # Refused exactly where no share in (0, 1] of the first stage reaches the average.
        least, most = layer / num_layers, 1 if then != "vtw" else horizon / num_layers
        assert keep <= least + 1e-9 or keep > most
        return
    shares = [1.0] * num_layers
    for stage in plan.stages:
        shares[stage.layer :] = [float(stage.keep)] * (num_layers - stage.layer)
    assert sum(shares) / num_layers == pytest.approx(keep)


@pytest.mark.parametrize("name", X_RANDOM)
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5])
def test_beyond_the_horizon_an_eighth_of_the_first_share_stays(name, keep):
    f1, f2 = (s.keep for s in Plan.preset(name, num_layers=32, keep=keep, horizon=20).stages)
    assert f1 < 1
    assert f2 == pytest.approx(f1 / 8)


@pytest.mark.parametrize("name", X_RANDOM)
def test_a_large_keep_fills_the_first_stage_and_then_the_second(name):
    f1, f2 = (s.keep for s in Plan.preset(name, num_layers=32, keep=0.9, horizon=20).stages)
    assert f1 == 1.0
    assert f2 == pytest.approx((0.9 * 32 - 20) / 12)


@pytest.mark.parametrize("name", [*ONE_STAGE, *X_RANDOM])
@pytest.mark.parametrize("num_layers", [7, 12, 28, 32])
def test_keep_one_keeps_everything(name, num_layers):
    _, layer, then = split(name)
    for horizon in range(layer + 1, num_layers) if then else [None]:
        plan = Plan.preset(name, num_layers=num_layers, keep=1.0, horizon=horizon)
        assert {stage.keep for stage in plan.stages} == {1.0}


def plans_over_a_grid():
    sizes = [(8, 3), (12, 10), (28, 21), (32, 20), (33, 32)]
    for name, (num_layers, horizon) in itertools.product([*ONE_STAGE, *X_RANDOM, *X_VTW], sizes):
        _, layer, then = split(name)
        most = horizon / num_layers if then == "vtw" else 1.0
        for step in range(1, 30):
            keep = layer / num_layers + (most - layer / num_layers) * step / 29
            yield (
                Plan.preset(
                    name, num_layers=num_layers, keep=keep, horizon=horizon if then else None
                ),
                num_layers,
            )


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 100, 575, 576, 577, 1369, 16384])
def test_the_realised_average_is_within_half_a_token(n):
    """Or within one, where a stage keeps one token because none would be left."""
    for plan, num_layers in plans_over_a_grid():
        error = abs(plan.average_tokens(n, num_layers) - plan.keep * n)
        lifted = any(0 < stage.keep * n < 0.5 for stage in plan.stages)
        assert error <= (1 if lifted else 0.5) + 1e-9, (plan, n)


def test_one_token_instead_of_none_can_cost_more_than_half_a_token():
    plan = Plan.preset("random", num_layers=32, keep=0.1)
    assert plan.average_tokens(1, 32) == 1


def test_vtw_alone_rounds_a_layer():
    for step in range(1, 100):
        plan = Plan.preset("vtw", num_layers=60, keep=step / 100.0)
        assert abs(plan.average_tokens(576, 60) - plan.keep * 576) <= 576 / 120 + 1e-9


@pytest.mark.parametrize(
    ("keep", "num_layers", "layer"), [(0.5, 32, 16), (0.5, 27, 14), (0.01, 32, 0), (0.98, 32, 31)]
)
def test_vtw_by_keep_drops_at_the_nearest_layer(keep, num_layers, layer):
    plan = Plan.preset("vtw", num_layers=num_layers, keep=keep)
    assert plan.stages == (Prune(layer, "drop", 0),)
    assert (plan.keep, plan.horizon) == (keep, None)


def test_vtw_by_horizon_drops_there():
    plan = Plan.preset("vtw", num_layers=32, horizon=20)
    assert plan.stages == (Prune(20, "drop", 0),)
    assert (plan.keep, plan.horizon, plan.horizon_source) == (None, 20, "given")


def test_vtw_takes_keep_or_horizon_but_not_both():
    with pytest.raises(PlanError, match=r"keep=0.5 and horizon=20: .* either .*; pass one"):
        Plan.preset("vtw", num_layers=32, keep=0.5, horizon=20)


@pytest.mark.parametrize(
    ("name", "label", "counts", "layer", "average"),
    [
        ("divprune+random", 192, (284, 38), 20, 191.75),
        ("divprune+random", 64, (96, 10), 20, 63.75),
        ("divprune+vtw", 192, (284, 0), 20, 177.5),
        ("divprune+vtw", 64, (98, 0), 21, 64.3125),
    ],
)
def test_the_papers_settings_are_exact(name, label, counts, layer, average):
    plan = Plan.paper(name, label)
    second = Prune(layer, "random" if name.endswith("random") else "drop", counts[1])
    assert plan.stages == (Prune(0, "diversity", counts[0]), second)
    assert plan.counts(576) == counts
    assert plan.average_tokens(576, 32) == average


@pytest.mark.parametrize("label", [192, 64])
@pytest.mark.parametrize("name", ["dart+random", "dart+vtw"])
def test_settings_of_a_planned_method_are_not_in_this_version(name, label):
    with pytest.raises(PlanError, match=r"is not in this version.*\('divprune\+random', 192\)"):
        Plan.paper(name, label)


@pytest.mark.parametrize(
    ("name", "label"),
    [("divprune+random", 128), ("divprune", 192), ("divprune+vtw", "64"), (["divprune+vtw"], 64)],
)
def test_an_unknown_setting_is_refused_with_what_there_is(name, label):
    with pytest.raises(PlanError, match=r"no released setting.*pass one of .*'divprune\+vtw', 64"):
        Plan.paper(name, label)


def test_numpy_numbers_make_the_same_plan():
    plan = Plan.preset(
        "divprune+random", num_layers=np.int64(32), keep=np.float64(0.5), horizon=np.int32(20)
    )
    assert plan == Plan.preset("divprune+random", num_layers=32, keep=0.5, horizon=20)
    assert (type(plan.keep), type(plan.horizon)) == (float, int)
