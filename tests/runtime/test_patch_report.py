"""The handle says what the last prefill did."""

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, fed, logits_of
from tiny_models import FAMILIES
from tiny_parts import LAYERS, text_of

import vtfast
from vtfast import Plan, Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def expected_tokens(plan, family, samples):
    """Visual tokens per sample and layer, from the plan alone."""
    rows = []
    for sample in samples:
        per_image = [
            plan.tokens_per_layer(family.tokens_of(picture), LAYERS) for picture in sample.pictures
        ]
        rows.append(tuple(sum(image[layer] for image in per_image) for layer in range(LAYERS)))
    return tuple(rows)


@both_layouts
def test_tokens_per_sample_and_layer_are_what_the_plan_says(family, path):
    samples, plan = family.named("batch"), Plan(FOUR_STAGES)
    model = family.build()
    with vtfast.patch(model, plan, path=path) as handle:
        logits_of(family, model, family.batch(samples))
    assert tuple(map(tuple, handle.report.tokens)) == expected_tokens(plan, family, samples)


@both_layouts
def test_the_layers_really_see_that_many_tokens(family, path):
    """The number of visual tokens reported is that in each layer's input."""
    samples, shapes = family.named("single"), []
    model, inputs = family.build(), family.batch(samples)
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        hooks = [
            layer.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape[1]))
            for layer in text_of(model).layers
        ]
        logits_of(family, model, inputs)
        for hook in hooks:
            hook.remove()
    [tokens] = handle.report.tokens
    text = inputs["input_ids"].shape[1] - family.tokens_of(samples[0].pictures[0])
    assert shapes == [n + text for n in tokens]


@both_layouts
def test_the_average_is_the_plans(family, path):
    [sample] = samples = family.named("single")
    plan, model = Plan(FOUR_STAGES), family.build()
    with vtfast.patch(model, plan, path=path) as handle:
        logits_of(family, model, family.batch(samples))
    n = family.tokens_of(sample.pictures[0])
    assert handle.report.average == pytest.approx(plan.average_tokens(n, LAYERS))


@families
def test_the_average_is_per_image(family):
    samples, plan = family.named("batch")[1:], Plan(FOUR_STAGES)  # two rows, three images
    model = family.build()
    with vtfast.patch(model, plan) as handle:
        logits_of(family, model, family.batch(samples))
    sizes = [family.tokens_of(p) for s in samples for p in s.pictures]
    mean = sum(plan.average_tokens(n, LAYERS) for n in sizes) / len(sizes)
    assert handle.report.average == pytest.approx(mean)


@both_layouts
def test_the_path_asked_for_is_the_path_taken(family, path):
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        continuation(model, family.inputs("batch"), steps=2)
    assert handle.report.path == path
    assert handle.report.path_reason


REASONS = [
    pytest.param("sdpa", {}, "samples are all alike", id="one-sample"),
    pytest.param("eager", {}, "eager", id="another-attention"),
    pytest.param("eager", {"output_attentions": True}, "", id="attention-maps"),
]


@pytest.mark.parametrize(("attention", "options", "reason"), REASONS)
def test_auto_is_padded_and_says_why(attention, options, reason):
    family = FAMILIES["llava"]
    model = family.build(attention=attention)
    with vtfast.patch(model, FOUR_STAGES) as handle, torch.no_grad():
        model(**fed(family, family.inputs("single")), **options)
    assert handle.report.path == "padded"
    assert reason in handle.report.path_reason


def test_there_is_no_report_before_the_first_prefill():
    with vtfast.patch(FAMILIES["llava"].build(), FOUR_STAGES) as handle:
        assert handle.report is None


def test_text_alone_leaves_the_report_of_the_last_pictures():
    family = FAMILIES["llava"]
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES) as handle:
        logits_of(family, model, family.inputs("single"))
        report = handle.report
        logits_of(family, model, family.batch(family.samples([5])))
        assert handle.report is report


@both_layouts
def test_decoding_leaves_the_report_of_its_prefill(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        logits_of(family, model, inputs)
        tokens = handle.report.tokens
        continuation(model, inputs, steps=3)
    assert handle.report.tokens == tokens


@both_layouts
def test_nothing_is_kept_on_record_unless_asked(family, path):
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        logits_of(family, model, family.inputs("single"))
    assert not handle.report.kept
    assert not handle.report.select_ms


@both_layouts
def test_the_time_of_every_stages_selection_is_on_record(family, path):
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits_of(family, model, family.inputs("single"))
    assert set(handle.report.select_ms) == {stage.layer for stage in FOUR_STAGES}
    assert min(handle.report.select_ms.values()) > 0


PRESETS = [
    pytest.param("llava", 4, id="llava"),  # 0.625 of 6 layers, rounded half up
    pytest.param("qwen", 5, id="qwen"),  # 0.75 of 6 layers, rounded half up
]


@pytest.mark.parametrize(("name", "horizon"), PRESETS)
def test_the_default_plan_is_divprune_and_random_at_the_familys_horizon(name, horizon):
    family = FAMILIES[name]
    model = family.build()
    with vtfast.patch(model) as handle:
        logits_of(family, model, family.inputs("single"))
    assert [(s.layer, s.method) for s in handle.plan.stages] == [
        (0, "diversity"),
        (horizon, "random"),
    ]
    assert "default, not measured" in str(handle.plan)
    n = family.tokens_of(family.named("single")[0].pictures[0])
    assert handle.report.average == pytest.approx(n / 2, abs=0.5)


def test_a_checkpoints_own_horizon_is_taken():
    model = FAMILIES["llava"].build()
    model.config.vtfast_horizon = 2
    with vtfast.patch(model) as handle:
        assert handle.plan.stages[1].layer == 2


def test_a_given_horizon_and_keep_are_taken():
    model = FAMILIES["llava"].build()
    with vtfast.patch(model, "random+vtw", keep=0.25, horizon=3) as handle:
        assert handle.plan.stages == (Prune(0, "random", 0.5), Prune(3, "drop", 0))
