"""After an exception inside a forward a patched model runs as if nothing had happened."""

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, first_rows, logits_of, probing
from module_state import changes, module_state
from tiny_parts import text_of

import vtfast
from vtfast import Prune


class Boom(Exception):
    """Raised by a test inside a forward."""


def check_recovery(family, path, plan, break_forward):
    """After `break_forward(model, inputs)` the model runs as a freshly patched one does."""
    inputs = family.inputs("batch")
    model = family.build()
    logits = logits_of(family, model, inputs)
    clean = module_state(model)
    fresh = family.build()
    with vtfast.patch(fresh, plan, path=path), probing(first_rows):
        expected = continuation(fresh, inputs)
    with vtfast.patch(model, plan, path=path):
        patched = module_state(model)
        with pytest.raises(Boom):
            break_forward(model, inputs)
        assert changes(patched, module_state(model)) == []
        with probing(first_rows):
            assert torch.equal(continuation(model, inputs), expected)
    assert changes(clean, module_state(model)) == []
    assert torch.equal(logits_of(family, model, inputs), logits)


@both_layouts
def test_a_model_runs_on_after_an_exception_in_a_method(family, path):
    def break_forward(model, inputs):
        def boom(context):
            raise Boom

        with probing(boom):
            continuation(model, inputs)

    plan = [Prune(0, "diversity", 0.6), Prune(3, "test-probe", 0.3)]
    check_recovery(family, path, plan, break_forward)


@both_layouts
def test_a_model_runs_on_after_an_exception_in_a_later_layer(family, path):
    def break_forward(model, inputs):
        def boom(module, args):
            raise Boom

        hook = text_of(model).layers[4].register_forward_pre_hook(boom)
        try:
            continuation(model, inputs)
        finally:
            hook.remove()

    check_recovery(family, path, FOUR_STAGES, break_forward)


@both_layouts
def test_a_model_runs_on_after_an_exception_while_decoding(family, path):
    def break_forward(model, inputs):
        calls = []

        def boom(module, args):
            calls.append(1)
            if len(calls) == 4:
                raise Boom

        hook = text_of(model).layers[4].register_forward_pre_hook(boom)
        try:
            continuation(model, inputs)
        finally:
            hook.remove()

    check_recovery(family, path, FOUR_STAGES, break_forward)
