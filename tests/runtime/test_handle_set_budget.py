"""`Handle.set` without a plan: another budget or horizon for the preset that the model has."""

import json

import pytest
from plans_to_set import PLAIN
from tiny_models import FAMILIES

import vtfast
from vtfast import PlanError


def test_without_a_plan_the_preset_stays_with_its_horizon_and_its_budget(tmp_path):
    model = FAMILIES["llava"].build()
    with vtfast.patch(model, "uniform", keep=0.5) as handle:
        handle.set(keep=0.25)
        assert handle.plan == vtfast.Plan.preset("uniform", num_layers=5, keep=0.25)
    with vtfast.patch(model, "divprune+random", keep=0.5, horizon=4) as handle:
        for now, how in (((0.25, 4), {"keep": 0.25}), ((0.25, 2), {"horizon": 2})):
            handle.set(**how)
            assert (handle.plan.name, handle.plan.keep, handle.plan.horizon) == (
                "divprune+random",
                *now,
            )
        before = handle.plan
        handle.set()
        assert handle.plan == before
    with vtfast.patch(model, keep=0.5) as handle:
        handle.set(keep=0.6)
        assert handle.plan.horizon_source == "default, not measured"
    with vtfast.patch(model, "vtw", keep=0.4) as handle:
        handle.set(horizon=3)
        assert (handle.plan.keep, handle.plan.horizon) == (None, 3)
        handle.set(keep=0.6)
        assert (handle.plan.keep, handle.plan.horizon) == (0.6, None)
    seeded = vtfast.Plan.preset("random", num_layers=5, keep=0.5)
    seeded.save(tmp_path / "seeded.json")
    written = json.loads((tmp_path / "seeded.json").read_text()) | {"seed": 7}
    (tmp_path / "seeded.json").write_text(json.dumps(written))
    with vtfast.patch(model, tmp_path / "seeded.json") as handle:
        handle.set(keep=0.25)
        assert (handle.plan.name, handle.plan.keep, handle.plan.seed) == ("random", 0.25, 7)
    named = vtfast.Plan.load(tmp_path / "seeded.json")
    object.__setattr__(named, "name", "mine")
    with vtfast.patch(model, named) as handle, pytest.raises(PlanError, match="plan is 'mine'"):
        handle.set(keep=0.25)
    with vtfast.patch(model, PLAIN) as handle:
        for how in ({"keep": 0.25}, {"horizon": 2}):
            with pytest.raises(PlanError, match=r"alone goes with a preset.*'custom'; pass a plan"):
                handle.set(**how)
        assert handle.plan == vtfast.Plan(PLAIN)
