"""Models that PEFT wrapped: adapters, changed adapters, learned prompts, and one training step."""

import pytest
import torch
from masked_model import hidden
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, fed, gone, logits_of
from tiny_models import FAMILIES

import vtfast
from vtfast import InputError, Prune, information

peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Position ids are not supported:UserWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def adapter(targets, **options):
    """LoRA that changes what the model says."""
    return peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options)


def wrapped(family, config):
    """The same wrapped model in every call."""
    torch.manual_seed(0)
    return peft.get_peft_model(family.build(), config).eval()


ADAPTERS = {
    "attention": adapter(["q_proj", "k_proj"]),
    "head": adapter(["lm_head"]),
    "tower": adapter(r".*vision_(tower|model).*(q_proj|fc1)|.*visual.*(qkv|gate_proj)"),
    "dora-and-saved-modules": adapter(
        ["q_proj"], use_dora=True, modules_to_save=["multi_modal_projector", "merger", "norm"]
    ),
}


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
@both_layouts
def test_an_adapted_model_has_the_oracles_logits(family, path, config):
    inputs, model = family.inputs("batch"), wrapped(family, config)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits = logits_of(family, model, inputs)
    lost = gone(inputs, handle.report.kept)
    inner = model.get_base_model()
    inner.set_attn_implementation("eager")
    oracle = Oracle(inner, inputs)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)


@both_layouts
def test_keeping_all_leaves_an_adapted_model_as_it_was(family, path):
    inputs, model = family.inputs("batch"), wrapped(family, ADAPTERS["attention"])
    expected = logits_of(family, model, inputs)
    with vtfast.patch(model, [Prune(2, "topk", 1.0)], path=path):
        assert torch.equal(logits_of(family, model, inputs), expected)
    assert not vtfast.is_patched(model)
    assert torch.equal(logits_of(family, model, inputs), expected)


@both_layouts
def test_an_adapted_model_generates_the_oracles_tokens(family, path):
    inputs, model = family.inputs("single"), wrapped(family, ADAPTERS["attention"])
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        tokens = continuation(model, inputs, steps=8)
    lost = gone(inputs, handle.report.kept)
    inner = model.get_base_model()
    inner.set_attn_implementation("eager")
    assert torch.equal(tokens, Oracle(inner, inputs).greedy(lost, 8))


def add_another(model):
    model.add_adapter("other", adapter(["k_proj", "v_proj"]))
    model.set_adapter("other")
    return model


def merge(model):
    model.merge_adapter()
    return model


def wrap_again(model):
    return peft.get_peft_model(model.unload(), adapter(["q_proj"])).eval()


CHANGES = {
    "add-another": add_another,
    "merge": merge,
    "merge-and-unload": lambda model: model.merge_and_unload(),
    "wrap-again": wrap_again,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@both_layouts
def test_an_adapter_changed_while_patched_counts_as_one_changed_before(family, path, change):
    inputs, before = family.inputs("batch"), wrapped(family, ADAPTERS["attention"])
    after = wrapped(family, ADAPTERS["attention"])
    torch.manual_seed(1)
    before = change(before)
    with vtfast.patch(before, FOUR_STAGES, path=path):
        expected = logits_of(family, before, inputs)
    vtfast.patch(after, FOUR_STAGES, path=path)
    torch.manual_seed(1)
    after = change(after)
    assert torch.equal(logits_of(family, after, inputs), expected)
    vtfast.unpatch(after)
    assert not vtfast.is_patched(after)


@families
def test_a_disabled_adapter_leaves_the_pruned_base_model(family):
    inputs, base = family.inputs("batch"), family.build()
    with vtfast.patch(base, FOUR_STAGES):
        expected = logits_of(family, base, inputs)
    model = wrapped(family, ADAPTERS["attention"])
    with vtfast.patch(model, FOUR_STAGES), model.disable_adapter():
        assert torch.equal(logits_of(family, model, inputs), expected)


@both_layouts
def test_learned_prompts_are_part_of_the_pruned_sequence(family, path):
    """They come before the padding, and no visual token is counted from them."""
    count, inputs = 3, family.inputs("batch")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)
    model = wrapped(family, config)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    pad = torch.nn.functional.pad
    lost = gone({"input_ids": pad(inputs["input_ids"], (count, 0))}, handle.report.kept)
    with hidden(model.get_base_model(), lost), torch.no_grad():
        expected = model(**inputs, use_cache=False).logits
    alive = pad(inputs["attention_mask"], (count, 0), value=1).bool()
    for rows in lost.values():
        for row, columns in zip(alive, rows, strict=True):
            row[columns] = False
    torch.testing.assert_close(logits[alive], expected[alive], rtol=0, atol=ATOL)


@families
def test_a_training_step_has_the_gradients_of_the_masked_sequence(family):
    inputs, model = family.inputs("batch"), wrapped(family, ADAPTERS["attention"])
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100

    def step():
        model.zero_grad()
        loss = model(**fed(family, inputs), labels=labels, use_cache=False).loss
        loss.backward()
        weights = {n: p for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), {n: p.grad.clone() for n, p in weights.items()}

    with vtfast.patch(model, FOUR_STAGES, record=True) as handle:
        loss, found = step()
    with hidden(model.get_base_model(), gone(inputs, handle.report.kept)):
        expected_loss, expected = step()
    torch.testing.assert_close(loss, expected_loss)
    assert len(found) == len(expected) >= 24
    assert all("lora" in name for name in found)
    for name, gradient in expected.items():
        near = 1e-5 * max(1.0, 3 * gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, atol=near, rtol=1e-3, msg=name)


def test_scores_of_an_adapted_model_are_those_of_the_model_inside():
    family = FAMILIES["llava"]
    model, inputs = wrapped(family, ADAPTERS["attention"]), family.inputs("single")
    how = {"layers": [2], "progress": False}
    expected = information.score(model.get_base_model(), inputs, [7], **how)
    found = information.score(model, inputs, [7], **how)
    assert (found.pictures[0].scores == expected.pictures[0].scores).all()


def test_scores_of_a_model_with_learned_prompts_are_refused():
    """The model inside does not know them, so it would have been scored without."""
    family = FAMILIES["llava"]
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match=r"learned prompts.*vtfast\.evaluate"):
        information.score(wrapped(family, config), family.inputs("single"), [7])
