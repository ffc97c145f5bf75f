"""Presets: the shares they solve for, the layers they prune at, and what they refuse."""

import itertools

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from vtfast.errors import PlanError
from vtfast.plan import Plan, Prune
from vtfast.presets import PAPER, PRESETS, needs_horizon

SETTINGS = examples(300)
FIRST = {
    "random": ("random", 0),
    "uniform": ("uniform", 0),
    "divprune": ("diversity", 0),
    "fastv": ("topk", 2),
    "dart": ("dart", 2),
    "cenprune": ("diversity", 0),
    "cdpruner": ("cdpruner", 0),
    "scope": ("scope", 0),
    "visionzip": ("visionzip", 0),
    "vispruner": ("vispruner", 0),
}
ONE_STAGE = list(FIRST)
X_RANDOM = [f"{name}+random" for name in FIRST if name not in ("random", "uniform")]
X_VTW = ["random+vtw", *(name.replace("+random", "+vtw") for name in X_RANDOM)]


def split(name):
    first, _, then = name.partition("+")
    return FIRST[first] + (then,)


def test_the_presets_are_those_documented():
    assert set(PRESETS) == {*ONE_STAGE, "pyramiddrop", "vtw", *X_RANDOM, *X_VTW}


@pytest.mark.parametrize("name", [*ONE_STAGE, *X_RANDOM, *X_VTW])
def test_the_first_stage_is_the_methods_own(name):
    method, layer, then = split(name)
    stage = Plan.preset(name, num_layers=32, keep=0.5, horizon=20 if then else None).stages[0]
    assert (stage.method, stage.layer) == (method, layer)


@pytest.mark.parametrize("then", ["", "+random", "+vtw"])
def test_cenprune_is_diversity_with_both_of_its_options(then):
    horizon = 20 if then else None
    stage = Plan.preset(f"cenprune{then}", num_layers=32, horizon=horizon).stages[0]
    assert {name: stage.options[name] for name in ("centre", "distinct")} == {
        "centre": True,
        "distinct": "minmax",
    }
    assert "centre=True, distinct='minmax'" in str(stage)


@pytest.mark.parametrize("name", [*X_RANDOM, *X_VTW])
def test_the_second_stage_is_at_the_horizon(name):
    stage = Plan.preset(name, num_layers=32, keep=0.5, horizon=20).stages[1]
    assert (stage.method, stage.layer) == ("random" if name in X_RANDOM else "drop", 20)


@pytest.mark.parametrize("name", sorted({*PRESETS} - {"pyramiddrop"}))
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


def test_vtw_by_horizon_drops_at_the_horizon():
    plan = Plan.preset("vtw", num_layers=32, horizon=20)
    assert plan.stages == (Prune(20, "drop", 0),)
    assert (plan.keep, plan.horizon, plan.horizon_source) == (None, 20, "given")


def test_vtw_takes_keep_or_horizon_but_not_both():
    with pytest.raises(PlanError, match=r"keep=0.5 and horizon=20: .* either .*; pass one"):
        Plan.preset("vtw", num_layers=32, keep=0.5, horizon=20)


@pytest.mark.parametrize(
    ("name", "label", "first", "counts", "layer", "average"),
    [
        ("divprune+random", 192, 0, (284, 38), 20, 191.75),
        ("divprune+random", 64, 0, (96, 10), 20, 63.75),
        ("dart+random", 192, 2, (252, 38), 20, 192.0),
        ("dart+random", 64, 1, (60, 27), 20, 63.75),
        ("divprune+vtw", 192, 0, (284, 0), 20, 177.5),
        ("divprune+vtw", 64, 0, (98, 0), 21, 64.3125),
        ("dart+vtw", 192, 2, (260, 0), 21, 190.375),
        ("dart+vtw", 64, 1, (60, 0), 26, 64.875),
    ],
)
def test_the_papers_settings_are_exact(name, label, first, counts, layer, average):
    plan = Plan.paper(name, label)
    method = "dart" if name.startswith("dart") else "diversity"
    second = Prune(layer, "random" if name.endswith("random") else "drop", counts[1])
    assert plan.stages == (Prune(first, method, counts[0]), second)
    assert plan.counts(576) == counts
    assert plan.average_tokens(576, 32) == average


def test_every_released_setting_is_exact():
    methods, ends = ("divprune", "dart"), ("random", "vtw")
    assert set(PAPER) == {
        (f"{m}+{end}", label) for m in methods for end in ends for label in (192, 64)
    }


@pytest.mark.parametrize(
    ("name", "label"),
    [("divprune+random", 128), ("divprune", 192), ("divprune+vtw", "64"), (["divprune+vtw"], 64)],
)
def test_an_unknown_setting_is_refused_with_the_known_ones(name, label):
    with pytest.raises(PlanError, match=r"no released setting.*pass one of .*'divprune\+vtw', 64"):
        Plan.paper(name, label)


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [(32, [8, 16, 24]), (28, [7, 14, 21]), (6, [2, 3, 5])],
)
def test_pyramiddrop_halves_at_every_quarter(num_layers, layers):
    plan = Plan.preset("pyramiddrop", num_layers=num_layers)
    assert list(plan.stages) == [
        Prune(layer, "topk", keep, score_layer="this")
        for layer, keep in zip(layers, [0.5, 0.25, 0.125], strict=True)
    ]
    assert plan.counts(576) == (288, 144, 72)


def test_pyramiddrop_as_released_averages_270_of_576():
    plan = Plan.preset("pyramiddrop", num_layers=32)
    assert plan.average_tokens(576, 32) == 270
    assert plan.keep == 15 / 32


@pytest.mark.parametrize("num_layers", [4, 7, 12, 28, 32])
@pytest.mark.parametrize("keep", [0.31, 0.4, 0.5, 0.75, 1.0])
def test_pyramiddrop_meets_a_keep_by_one_share_from_stage_to_stage(num_layers, keep):
    plan = Plan.preset("pyramiddrop", num_layers=num_layers, keep=keep)
    first, second, third = (stage.keep for stage in plan.stages)
    assert (second, third) == pytest.approx((first**2, first**3))
    assert plan.average_tokens(10**9, num_layers) == pytest.approx(keep * 10**9, abs=2)
    assert plan.keep == keep
    if keep == 1:
        assert first == 1


def test_pyramiddrop_cannot_go_below_its_first_quarter():
    with pytest.raises(PlanError, match=r"8 of 32.*smallest reachable keep is 0.2501"):
        Plan.preset("pyramiddrop", num_layers=32, keep=0.25)
    assert Plan.preset("pyramiddrop", num_layers=32, keep=0.2501).stages[0].keep < 0.001


def test_pyramiddrop_has_no_horizon_and_needs_four_layers():
    with pytest.raises(PlanError, match="preset 'pyramiddrop' has no horizon"):
        Plan.preset("pyramiddrop", num_layers=32, horizon=20)
    with pytest.raises(PlanError, match=r"three layers.*has 3 decoder layers"):
        Plan.preset("pyramiddrop", num_layers=3)


def test_numpy_numbers_make_the_same_plan():
    plan = Plan.preset(
        "divprune+random", num_layers=np.int64(32), keep=np.float64(0.5), horizon=np.int32(20)
    )
    assert plan == Plan.preset("divprune+random", num_layers=32, keep=0.5, horizon=20)
    assert (type(plan.keep), type(plan.horizon)) == (float, int)
