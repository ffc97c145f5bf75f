"""Plans: which stages are allowed, how many tokens each layer sees, and how a plan is printed."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlavaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vtfast.errors import PlanError
from vtfast.plan import Plan, Prune

SETTINGS = examples(200)
TWO_STAGES = [Prune(0, "diversity", 284), Prune(20, "random", 38)]


def test_planning_needs_neither_torch_nor_transformers():
    code = (
        "import sys, vtfast.plan; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_list_and_a_tuple_make_the_same_plan():
    assert Plan(TWO_STAGES) == Plan(tuple(TWO_STAGES))
    assert Plan(TWO_STAGES).stages == tuple(TWO_STAGES)


def test_an_empty_plan_is_refused():
    with pytest.raises(PlanError, match="prunes nothing; pass at least one Prune"):
        Plan([])


@pytest.mark.parametrize("stages", [TWO_STAGES[0], "divprune", None, {"a": 1}])
def test_stages_that_are_no_list_are_refused(stages):
    with pytest.raises(PlanError, match=r"expected a list of Prune; pass \[Prune\(...\), ...\]"):
        Plan(stages)


def test_a_stage_that_is_no_prune_is_refused():
    with pytest.raises(PlanError, match=r"\(0, 'random', 0.5\) in a plan: expected Prune"):
        Plan([(0, "random", 0.5)])


@pytest.mark.parametrize("layers", [(2, 2), (5, 2), (0, 7, 7), (0, 7, 3)])
def test_layers_that_do_not_increase_are_refused(layers):
    with pytest.raises(PlanError, match="layers must strictly increase"):
        Plan([Prune(layer, "random", 0.5) for layer in layers])


@pytest.mark.parametrize(
    "keeps",
    [(0.5, 0.6), (100, 101), (0.5, 10, 0.6), (100, 0.5, 101), (0.9, 0.5, 0.6), (0, 0.1), (0.0, 5)],
)
def test_keeps_that_increase_are_refused(keeps):
    with pytest.raises(PlanError, match=r"keeps more than .*never brings a token back"):
        Plan([Prune(layer, "random", keep) for layer, keep in enumerate(keeps)])


@pytest.mark.parametrize("keeps", [(0.5, 0.5), (9, 9), (0.01, 500), (1, 1.0), (9, 0.5, 8, 0.4, 0)])
def test_keeps_that_do_not_increase_within_their_kind_are_accepted(keeps):
    plan = Plan([Prune(layer, "random", keep) for layer, keep in enumerate(keeps)])
    assert [stage.keep for stage in plan.stages] == list(keeps)


def test_frames_are_not_pruned_after_whole_clips():
    """A clip pruned as a whole has an unknown number of tokens left in each frame."""
    frame = Prune(5, "random", 0.25, per="frame")
    with pytest.raises(PlanError, match=r"by frame after .* pruned by image"):
        Plan([Prune(0, "diversity", 0.5), frame])
    with pytest.raises(PlanError, match=r'by frame after .* by tile.*give that stage per="frame"'):
        Plan([Prune(0, "diversity", 0.5, per="tile"), frame])
    Plan([Prune(0, "diversity", 0.5, per="frame"), frame])
    Plan([Prune(0, "diversity", 1.0), frame])


def test_tokens_per_frame_and_per_image_are_not_compared():
    Plan([Prune(0, "diversity", 4, per="frame"), Prune(5, "random", 20)])


def test_labels_cannot_be_passed_by_the_caller():
    with pytest.raises(TypeError):
        Plan(TWO_STAGES, keep=0.5)


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plan(TWO_STAGES).stages = ()


def test_a_plan_is_a_dictionary_key():
    assert {Plan(TWO_STAGES): "here"}[Plan(list(TWO_STAGES))] == "here"


def test_one_token_and_all_tokens_make_different_plans():
    assert Plan([Prune(0, "random", 1)]) != Plan([Prune(0, "random", 1.0)])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_plan_survives_copying(duplicate):
    plan = Plan.preset("divprune+random", num_layers=32, horizon=20, horizon_source="checkpoint")
    assert duplicate(plan) == plan
    assert str(duplicate(plan)) == str(plan)


def increasing_layers(size):
    return st.lists(st.integers(0, 39), min_size=size, max_size=size, unique=True).map(sorted)


@st.composite
def plans(draw):
    fractions = draw(st.lists(st.floats(0, 1), max_size=3).map(lambda x: sorted(x, reverse=True)))
    numbers = draw(st.lists(st.integers(1, 900), max_size=3).map(lambda x: sorted(x, reverse=True)))
    order = draw(st.permutations([float] * len(fractions) + [int] * len(numbers)))
    keeps = [(fractions if kind is float else numbers).pop(0) for kind in order] or [0.5]
    if 0 in keeps:
        keeps = keeps[: keeps.index(0) + 1]
    layers = draw(increasing_layers(len(keeps)))
    return Plan(
        [Prune(*stage) for stage in zip(layers, ["random"] * len(keeps), keeps, strict=True)]
    )


@SETTINGS
@given(plan=plans(), n=st.integers(0, 3000))
def test_every_layer_sees_what_the_last_stage_at_or_before_it_left(plan, n):
    expected, left = [], n
    for layer in range(40):
        for stage in plan.stages:
            if stage.layer == layer:
                left = stage.count(n, left)
        expected.append(left)
    assert plan.tokens_per_layer(n, 40) == tuple(expected)
    assert plan.counts(n) == tuple(expected[stage.layer] for stage in plan.stages)
    assert plan.average_tokens(n, 40) == pytest.approx(sum(expected) / 40)


@SETTINGS
@given(plan=plans(), n=st.integers(0, 3000))
def test_no_layer_sees_more_tokens_than_the_one_before(plan, n):
    tokens = (n, *plan.tokens_per_layer(n, 40))
    assert list(tokens) == sorted(tokens, reverse=True)


def test_a_stage_acts_on_the_input_of_its_layer():
    plan = Plan([Prune(0, "random", 4), Prune(2, "random", 1)])
    assert plan.tokens_per_layer(9, 4) == (4, 4, 1, 1)


def test_a_later_stage_never_brings_a_token_back():
    assert Plan([Prune(0, "random", 0.1), Prune(5, "random", 100)]).counts(100) == (10, 10)


@pytest.mark.parametrize("call", ["check", "tokens_per_layer", "average_tokens"])
def test_a_stage_beyond_the_last_layer_is_refused(call):
    arguments = (20,) if call == "check" else (576, 20)
    with pytest.raises(PlanError, match=r"Prune\(20.* has 20 decoder layers; pass layers 0 to 19"):
        getattr(Plan(TWO_STAGES), call)(*arguments)


def test_a_stage_at_the_last_layer_is_accepted():
    assert Plan(TWO_STAGES).check(21) is None


SMALL = LlamaConfig(
    num_hidden_layers=6,
    hidden_size=48,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=80,
)


def multiply_adds(config, tokens):
    """Of one layer, from the weights a real one holds and one query after another."""
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
    weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    pairs = sum(query + 1 for query in range(tokens))
    return tokens * weights + pairs * config.num_attention_heads * config.head_dim * 2


@pytest.mark.parametrize("config", [SMALL, LlavaConfig(text_config=SMALL)], ids=["text", "whole"])
@pytest.mark.parametrize("stages", [[(0, 20)], [(2, 30), (5, 0)]], ids=["first", "middle"])
def test_the_ratio_counts_weights_and_causal_pairs(config, stages):
    plan = Plan([Prune(layer, "random", keep) for layer, keep in stages])
    pruned = sum(multiply_adds(SMALL, 11 + n) for n in plan.tokens_per_layer(64, 6))
    expected = pruned / (6 * multiply_adds(SMALL, 75))
    assert plan.flops_ratio(config, 64, 11) == pytest.approx(expected, rel=1e-12)


def test_a_configuration_without_grouped_heads_or_head_dim_is_read():
    @dataclass
    class Config:
        num_hidden_layers: int = 6
        hidden_size: int = 96
        num_attention_heads: int = 6
        intermediate_size: int = 80
        num_key_value_heads: int | None = None

    same = LlamaConfig(
        num_hidden_layers=6, hidden_size=96, num_attention_heads=6, intermediate_size=80
    )
    plan = Plan([Prune(2, "random", 0.25)])
    assert plan.flops_ratio(Config(), 64, 11) == plan.flops_ratio(same, 64, 11)


def test_a_plan_that_keeps_everything_saves_nothing():
    plan = Plan.preset("divprune+random", num_layers=6, keep=1.0, horizon=4)
    assert plan.flops_ratio(SMALL, 64, 11) == 1


def test_several_images_are_pruned_one_by_one():
    plan = Plan([Prune(0, "random", 10)])
    assert plan.flops_ratio(SMALL, (64, 36), 11) == plan.flops_ratio(SMALL, [50, 50], 11)
    assert plan.flops_ratio(SMALL, (64, 36), 11) > plan.flops_ratio(SMALL, 100, 11)


def test_without_an_image_nothing_is_saved():
    assert Plan([Prune(0, "random", 10)]).flops_ratio(SMALL, (), 11) == 1


def test_a_ratio_of_no_tokens_is_refused():
    with pytest.raises(PlanError, match="n_text=0: expected a whole number >= 1"):
        Plan([Prune(0, "random", 10)]).flops_ratio(SMALL, 0, 0)


def test_a_model_too_shallow_for_the_plan_has_no_ratio():
    with pytest.raises(PlanError, match="has 6 decoder layers"):
        Plan(TWO_STAGES).flops_ratio(SMALL, 576, 11)


def test_a_plan_is_printed_stage_by_stage():
    plan = Plan.preset(
        "divprune+random",
        num_layers=32,
        keep=0.5,
        horizon=20,
        horizon_source="default, not measured",
    )
    assert str(plan).splitlines() == [
        "divprune+random, keep 0.5 on average, horizon 20 (default, not measured)",
        "  layer 0: diversity keeps 74.42% of each image's tokens",
        "  layer 20: random keeps 9.30% of each image's tokens",
    ]


def test_tokens_frames_and_drops_are_printed_as_such():
    plan = Plan([Prune(0, "diversity", 284, per="frame"), Prune(20, "drop", 0)])
    assert str(plan).splitlines() == [
        "custom",
        "  layer 0: diversity keeps 284 of each frame's tokens",
        "  layer 20: drop keeps nothing",
    ]


def test_the_realised_average_is_printed():
    told = Plan.paper("divprune+random", 192).describe(576, 32).splitlines()
    assert told[0] == "divprune+random, released setting 192, horizon 20 (the paper's)"
    assert told[-1] == "  an image of 576: 576 → 284 → 38 tokens, 191.75 on average"


def test_a_name_resolves_to_its_preset():
    arguments = {"num_layers": 32, "keep": 0.4, "horizon": 20, "horizon_source": "checkpoint"}
    resolved = Plan.resolve("fastv+random", **arguments)
    assert resolved == Plan.preset("fastv+random", **arguments)


def test_a_plan_resolves_to_itself():
    plan = Plan(TWO_STAGES)
    assert Plan.resolve(plan, num_layers=32) is plan


def test_a_list_resolves_to_a_plan():
    assert Plan.resolve(TWO_STAGES, num_layers=32) == Plan(TWO_STAGES)


@pytest.mark.parametrize("plan", [Plan(TWO_STAGES), TWO_STAGES], ids=["plan", "list"])
@pytest.mark.parametrize("given", [{"keep": 0.5}, {"horizon": 20}], ids=["keep", "horizon"])
def test_keep_and_horizon_are_accepted_with_a_preset_name_only(plan, given):
    with pytest.raises(
        PlanError, match=r"goes with a preset name only.*leave it out, or pass a preset"
    ):
        Plan.resolve(plan, num_layers=32, **given)


@pytest.mark.parametrize("plan", [Plan(TWO_STAGES), TWO_STAGES], ids=["plan", "list"])
def test_a_plan_for_a_deeper_model_does_not_resolve(plan):
    with pytest.raises(PlanError, match="has 12 decoder layers"):
        Plan.resolve(plan, num_layers=12)


@pytest.mark.parametrize("plan", [None, 3, Prune(0, "random", 0.5)])
def test_anything_else_does_not_resolve(plan):
    with pytest.raises(PlanError, match="expected a list of Prune"):
        Plan.resolve(plan, num_layers=32)
