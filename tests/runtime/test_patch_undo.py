"""Patching is undone without a trace: attributes, hooks, configurations and bits.

Every model is warmed first: transformers adds hooks of its own in a model's first forward.
"""

import gc
import weakref

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, first_rows, logits_of, probing
from module_state import changes, class_state, module_state
from tiny_models import FAMILIES
from tiny_parts import text_name, text_of
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtfast
from vtfast import Prune


class Boom(Exception):
    """Raised by a test inside a forward."""


def warmed(family, inputs):
    model = family.build()
    return model, logits_of(family, model, inputs), continuation(model, inputs, steps=4)


def leave_by_remove(model, use, **options):
    handle = vtfast.patch(model, FOUR_STAGES, **options)
    use()
    handle.remove()


def leave_by_unpatch(model, use, **options):
    vtfast.patch(model, FOUR_STAGES, **options)
    use()
    vtfast.unpatch(model)


def leave_by_with_block(model, use, **options):
    with vtfast.patch(model, FOUR_STAGES, **options):
        use()


def leave_by_exception(model, use, **options):
    with pytest.raises(Boom), vtfast.patch(model, FOUR_STAGES, **options):  # noqa: PT012
        use()
        raise Boom


WAYS_OUT = [leave_by_remove, leave_by_unpatch, leave_by_with_block, leave_by_exception]
ways_out = pytest.mark.parametrize("leave", WAYS_OUT, ids=lambda f: f.__name__[9:])


@ways_out
@both_layouts
def test_undo_restores_every_attribute_of_every_module(family, path, leave):
    inputs = family.inputs("batch")
    model, *_ = warmed(family, inputs)
    before = module_state(model)
    leave(model, lambda: continuation(model, inputs, steps=4), path=path, record=True)
    assert changes(before, module_state(model)) == []


@ways_out
@both_layouts
def test_undo_restores_the_logits_and_tokens_to_the_bit(family, path, leave):
    inputs = family.inputs("batch")
    model, logits, tokens = warmed(family, inputs)
    leave(model, lambda: continuation(model, inputs, steps=4), path=path)
    assert torch.equal(logits_of(family, model, inputs), logits)
    assert torch.equal(continuation(model, inputs, steps=4), tokens)


@both_layouts
def test_a_patch_that_was_never_used_is_undone_too(family, path):
    model, *_ = warmed(family, family.inputs("single"))
    before = module_state(model)
    vtfast.patch(model, FOUR_STAGES, path=path).remove()
    assert changes(before, module_state(model)) == []


@both_layouts
def test_a_patch_is_seen_in_the_module_state(family, path):
    """A patch changes what the tests of undo compare, so they can fail."""
    model, *_ = warmed(family, family.inputs("single"))
    before = module_state(model)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        changed = {name for name, _ in changes(before, module_state(model))}
    text = text_name(model)
    assert {"model", text, f"{text}.layers.3"} <= changed


@both_layouts
def test_a_model_is_patched_from_patch_to_undo(family, path):
    model = family.build()
    assert not vtfast.is_patched(model)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        assert vtfast.is_patched(model)
    assert not vtfast.is_patched(model)


def test_removing_twice_is_removing_once():
    model = FAMILIES["llava"].build()
    handle = vtfast.patch(model, FOUR_STAGES)
    handle.remove()
    handle.remove()
    assert not vtfast.is_patched(model)


def test_an_old_handle_does_not_undo_a_later_patch():
    model = FAMILIES["llava"].build()
    old = vtfast.patch(model, FOUR_STAGES)
    old.remove()
    with vtfast.patch(model, FOUR_STAGES):
        old.remove()
        assert vtfast.is_patched(model)


@both_layouts
def test_a_model_can_be_patched_again_with_another_plan(family, path):
    inputs = family.inputs("single")
    model, logits, _ = warmed(family, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        logits_of(family, model, inputs)
    with vtfast.patch(model, [Prune(0, "random", 1.0)], path=path):
        assert torch.equal(logits_of(family, model, inputs), logits)


@both_layouts
def test_patching_touches_no_class(family, path):
    model, inputs = family.build(), family.inputs("single")
    logits_of(family, model, inputs)
    before = class_state(model)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        continuation(model, inputs, steps=4)
        assert class_state(model) == before


@both_layouts
def test_patching_adds_at_most_one_attention_function(family, path):
    before = set(ALL_ATTENTION_FUNCTIONS.valid_keys())
    with vtfast.patch(family.build(), FOUR_STAGES, path=path):
        assert set(ALL_ATTENTION_FUNCTIONS.valid_keys()) - before <= {"vtfast"}


@both_layouts
def test_another_model_of_the_class_does_not_notice(family, path):
    inputs, bystander = family.inputs("batch"), family.build()
    expected = logits_of(family, bystander, inputs)
    before = module_state(bystander)
    with vtfast.patch(family.build(), FOUR_STAGES, path=path):
        assert torch.equal(logits_of(family, bystander, inputs), expected)
        assert changes(before, module_state(bystander)) == []


@both_layouts
def test_a_forward_leaves_nothing_on_the_modules(family, path):
    inputs = family.inputs("batch")
    model, *_ = warmed(family, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        before = module_state(model)
        continuation(model, inputs, steps=4)
        assert changes(before, module_state(model)) == []


@both_layouts
def test_a_forward_pins_no_activation(family, path):
    model, inputs, seen = family.build(), family.inputs("batch"), []

    def watch(context):
        seen.extend(map(weakref.ref, (context, context.features, context.scores)))
        return first_rows(context)

    def spy(module, args, kwargs):
        tensors = [*args, *kwargs.values(), *kwargs.get("position_embeddings", ())]
        seen.extend(weakref.ref(t) for t in tensors if isinstance(t, torch.Tensor))

    plan = [Prune(0, "test-probe", 0.5), Prune(3, "test-probe", 0.2)]
    with vtfast.patch(model, plan, path=path, record=True), probing(watch):
        text = text_of(model)
        hooks = [m.register_forward_pre_hook(spy, with_kwargs=True) for m in (text, *text.layers)]
        logits_of(family, model, inputs)
        for hook in hooks:
            hook.remove()
        gc.collect()
        given = {id(t) for t in inputs.values()}
        assert len(seen) > 20
        left = [ref() for ref in seen]
        assert [type(t) for t in left if t is not None and id(t) not in given] == []
