"""The plans that `vtfast.tune` looks among, and their costs."""

from itertools import pairwise

import pytest
from tiny_models import FAMILIES

from vtfast import InputError
from vtfast.plan import Plan, Prune
from vtfast.tuning.space import KEEPS, Costs, space


def test_plans_have_one_to_three_stages_before_and_behind_the_horizon():
    plans = space(12, 7, ("diversity", "topk"))
    assert {len(plan.stages) for plan in plans} == {1, 2, 3}
    assert len({plan.stages for plan in plans}) == len(plans) == len({plan.name for plan in plans})
    assert {plan.stages[0].layer for plan in plans} >= {0, 2, 3, 6, 7, 8}
    lasts = {(s[-1].layer, s[-1].method) for s in (plan.stages for plan in plans) if len(s) > 1}
    assert lasts >= {(layer, how) for layer in (6, 7, 8) for how in ("drop", "random")}


def firsts(method, horizon=None):
    """Layers at which plans begin with this method."""
    stages = (plan.stages[0] for plan in space(12, horizon, (method,)))
    return {stage.layer for stage in stages if stage.method == method}


def test_methods_that_read_scores_begin_where_there_are_some():
    assert firsts("topk") == {2, 3, 6, 9}
    assert firsts("diversity") == {0, 3, 6, 9}


def test_without_a_horizon_there_is_one_stage():
    assert {len(plan.stages) for plan in space(12, None, ("random",))} == {1}


def test_plans_for_vllm_have_one_stage_before_the_language_model():
    plans = space(12, None, ("diversity", "random", "topk"), engine="vllm")
    stages = [plan.stages for plan in plans]
    assert stages == [(Prune(0, name, keep),) for name in ("diversity", "random") for keep in KEEPS]


def test_a_plan_file_stands_for_its_method_with_its_options(tmp_path):
    path = str(tmp_path / "mine.json")
    Plan([Prune(0, "diversity", 0.3, centre=True), Prune(9, "drop", 0)]).save(path)
    found = {plan.stages[0] for plan in space(12, 7, (path,)) if plan.stages[0].method != "drop"}
    assert found == {
        Prune(stage.layer, "diversity", stage.keep, centre=True)
        for stage in (plan.stages[0] for plan in space(12, 7, ("diversity",)))
        if stage.method != "drop"
    }
    Plan([Prune(3, "drop", 0)]).save(path)
    with pytest.raises(InputError, match="is always tried"):
        space(12, 7, (path,))


def test_everything_may_be_dropped_at_any_layer():
    """The gentlest plans, where no other is good enough."""
    drops = {p.stages[0].layer for p in space(12, 7, ("random",)) if p.stages[0].method == "drop"}
    assert drops == set(range(1, 12))


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 80])
@pytest.mark.parametrize("horizon", [None, 1, 3, 79])
def test_every_plan_fits_the_model(layers, horizon):
    if horizon is not None and horizon >= layers:
        return
    for plan in space(layers, horizon, ("uniform", "topk", "dart")):
        plan.check(layers)


def test_keeps_are_steps_of_a_third_at_most():
    assert all(0.6 <= after / before < 1 for before, after in pairwise(KEEPS))


def test_costs_are_those_of_the_plan_on_questions_of_these_sizes():
    config = FAMILIES["llava"].build().config
    plan = Plan((Prune(0, "random", 0.5), Prune(2, "drop", 0)))
    one = Costs(config, {(64, 1, 10): 3})
    assert one.flops(plan) == pytest.approx(plan.flops_ratio(config, 64, 10))
    layers = config.text_config.num_hidden_layers
    tokens = plan.tokens_per_layer(64, layers)
    assert one.cache(plan) == pytest.approx((10 * layers + sum(tokens)) / (74 * layers))
    assert one.tokens(plan) == pytest.approx(plan.average_tokens(64, layers))
    two = Costs(config, {(64, 1, 10): 1, (16, 1, 40): 1})
    assert one.flops(plan) < two.flops(plan) < Costs(config, {(16, 1, 40): 9}).flops(plan)


def test_every_picture_of_a_question_keeps_a_token():
    """Eight pictures of nine tokens, of which a sixteenth is none."""
    config = FAMILIES["llava"].build().config
    few = Plan((Prune(0, "uniform", 0.0625),))
    assert Costs(config, {(72, 8, 10): 1}).tokens(few) == 8
    assert Costs(config, {(72, 1, 10): 1}).tokens(few) == 5


def test_layers_without_a_cache_do_not_count_in_it():
    config = FAMILIES["qwen3.5"].build().config
    kinds = config.text_config.layer_types
    last = len(kinds) - 1 - kinds[::-1].index("full_attention")
    plan = Plan((Prune(last, "drop", 0),))
    expected = 1 - 40 / 50 / kinds.count("full_attention")
    assert Costs(config, {(40, 1, 10): 1}).cache(plan) == pytest.approx(expected)
