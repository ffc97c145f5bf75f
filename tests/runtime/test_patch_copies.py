"""A deep copy of a patched model is patched too, and neither touches the other."""

import copy

import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, logits_of
from module_state import Alike, changes, module_state

import vtfast


def warmed(family, inputs):
    model = family.build()
    return model, logits_of(family, model, inputs)


@both_layouts
def test_a_copy_of_a_patched_model_is_patched_and_says_the_same(family, path):
    inputs = family.inputs("batch")
    model, _ = warmed(family, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        copied = copy.deepcopy(model)
        assert vtfast.is_patched(copied)
        assert torch.equal(continuation(copied, inputs), continuation(model, inputs))


@both_layouts
def test_a_copy_is_unpatched_by_itself(family, path):
    inputs = family.inputs("batch")
    model, logits = warmed(family, inputs)
    plain = module_state(copy.deepcopy(model), Alike)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected, patched = continuation(model, inputs), module_state(model)
        copied = copy.deepcopy(model)
        vtfast.unpatch(copied)
        assert not vtfast.is_patched(copied)
        assert changes(plain, module_state(copied, Alike)) == []
        assert torch.equal(logits_of(family, copied, inputs), logits)
        assert vtfast.is_patched(model)
        assert changes(patched, module_state(model)) == []
        assert torch.equal(continuation(model, inputs), expected)


@both_layouts
def test_unpatching_the_original_leaves_its_copy_patched(family, path):
    inputs = family.inputs("batch")
    model, _ = warmed(family, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs)
        copied = copy.deepcopy(model)
    assert vtfast.is_patched(copied)
    assert torch.equal(continuation(copied, inputs), expected)


@both_layouts
def test_running_a_copy_does_not_touch_the_report_of_the_original(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        logits_of(family, model, inputs)
        report = handle.report
        logits_of(family, copy.deepcopy(model), family.inputs("single"))
        assert handle.report is report
