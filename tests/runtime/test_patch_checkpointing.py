"""Training with gradient checkpointing: the layers run twice, the picks are made once."""

from functools import partial

import pytest
import torch
from cache_name import CACHE
from model_runs import fed, first_rows, probing
from tiny_models import FAMILIES
from tiny_parts import text_name, text_of
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

import vtfast
from vtfast import Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
PLANS = {
    "two-stages": [Prune(1, "random", 0.5), Prune(3, "topk", 0.3)],
    "from-the-start": [Prune(0, "diversity", 0.5), Prune(4, "drop", 0)],
    "scored-by-itself": [Prune(2, "topk", 0.4, score_layer="this")],
}


def gradients(family, model, inputs):
    """Loss and gradient of every weight, in training mode, for labels on the last four tokens."""
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    model.train()
    model.zero_grad()
    loss = model(**fed(family, inputs), labels=labels, use_cache=False).loss
    loss.backward()
    weights = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), weights


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@families
def test_loss_and_gradients_are_those_without_it(family, plan, reentrant):
    model, inputs = family.build(), family.inputs("batch")
    model.enable_input_require_grads()  # re-entrant checkpoints need it in every model
    with vtfast.patch(model, plan):
        loss, expected = gradients(family, model, inputs)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed, found = gradients(family, model, inputs)
    assert torch.equal(checkpointed, loss)
    assert found.keys() == expected.keys()
    assert len(found) >= 90
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@families
def test_a_method_is_asked_once(family, reentrant):
    """Another selection in backward would give the gradients of another forward."""
    model, inputs, calls = family.build(), family.inputs("single"), []

    def counted(context):
        calls.append(context.layer)
        return first_rows(context)

    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with probing(counted), vtfast.patch(model, [Prune(2, "test-probe", 0.5)]):
        gradients(family, model, inputs)
    assert calls == [2]


@families
def test_a_layer_whose_hooks_run_again_prunes_as_before(family, monkeypatch):
    """transformers before 5.23 checkpoints the call of a layer, later ones its forward alone."""
    model, inputs = family.build(), family.inputs("batch")
    layer = type(text_of(model).layers[0])
    call = layer.__call__

    def checkpointed(self, *args, **kwargs):
        return checkpoint(partial(call, self, **kwargs), *args, use_reentrant=False)

    with vtfast.patch(model, PLANS["two-stages"]):
        loss, expected = gradients(family, model, inputs)
        monkeypatch.setattr(layer, "__call__", checkpointed)
        again, found = gradients(family, model, inputs)
    assert torch.equal(again, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


class WithDropout(torch.nn.Linear):
    """A projection that draws random numbers in training, as one with a LoRA adapter does."""

    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


@families
def test_scores_leave_the_random_numbers_of_a_layer_alone(family, monkeypatch):
    """The scores once drew some in the forward and none in backward, where the layer then dropped
    other numbers than before."""
    model, inputs = family.build(), family.inputs("batch")
    for layer in text_of(model).layers:
        layer.self_attn.q_proj.__class__ = WithDropout
    layer = type(text_of(model).layers[0])
    call, found = layer.__call__, []

    def checkpointed(self, *args, **kwargs):
        return checkpoint(partial(call, self, **kwargs), *args, use_reentrant=False)

    with vtfast.patch(model, PLANS["scored-by-itself"]):
        for how in (call, checkpointed):
            monkeypatch.setattr(layer, "__call__", how)
            torch.manual_seed(0)
            found.append(gradients(family, model, inputs))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@families
def test_a_cache_given_stays_empty_as_in_transformers(family):
    model, inputs = family.build().train(), family.inputs("single")
    model.gradient_checkpointing_enable()
    cache = DynamicCache()
    with vtfast.patch(model, PLANS["two-stages"]):
        expected, _ = gradients(family, model, inputs)
        labels = inputs["input_ids"].clone()
        labels[:, :-4] = -100
        loss = model(**fed(family, inputs), labels=labels, **{CACHE: cache}).loss
    assert torch.equal(loss.detach(), expected)
    assert type(cache) is DynamicCache
    assert cache.get_seq_length() == 0


@families
def test_gradients_of_a_training_step_are_the_slope_of_its_loss(family):
    model, inputs = family.build(), family.inputs("single")
    name = f"{text_name(model)}.layers.0.self_attn.v_proj.weight"  # below both stages
    weight = model.get_parameter(name)
    with vtfast.patch(model, PLANS["two-stages"]):
        gradient = gradients(family, model, inputs)[1][name]
        step, losses = 1e-4 * gradient / gradient.norm(), []  # too small to change a pick
        for move in (step, -2 * step):
            with torch.no_grad():
                weight += move
            losses.append(gradients(family, model, inputs)[0])
    slope = (losses[0] - losses[1]) / 2e-4
    torch.testing.assert_close(slope, gradient.norm(), rtol=0.02, atol=0)
