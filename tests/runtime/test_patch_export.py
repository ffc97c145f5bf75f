"""A patched model is not exported or traced: that is said before anything ran."""

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, logits_of
from tiny_models import FAMILIES

import vtfast
from vtfast import StateError

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


class ByPosition(torch.nn.Module):
    """Takes its tensors by position and returns one, as tracing wants it."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True)), use_cache=False).logits


def export(model, inputs):
    return torch.export.export(model, (), {**inputs, "use_cache": False})


def trace(model, inputs):
    module = ByPosition(model, list(inputs))
    return torch.jit.trace(module, tuple(inputs.values()), check_trace=False)


def onnx(model, inputs):
    module = ByPosition(model, list(inputs))
    return torch.onnx.export(module, tuple(inputs.values()), "unused.onnx", dynamo=False)


RECORDERS = {"export": export, "trace": trace, "onnx": onnx}
# Recording warns of itself, and reads deprecated attributes of transformers' models.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)


@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
@both_layouts
def test_a_forward_with_pictures_is_not_recorded(family, path, record):
    model, inputs = family.build(), family.inputs("single")
    expected = logits_of(family, model, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle, torch.no_grad():
        pruned, report = logits_of(family, model, inputs), handle.report
        with pytest.raises(StateError, match=r"exported or traced.*unpatch"):
            record(model, inputs)
        assert handle.report is report
        assert torch.equal(logits_of(family, model, inputs), pruned)
    assert torch.equal(logits_of(family, model, inputs), expected)


@families
def test_a_patched_model_is_traced_without_pictures_as_stock_is(family):
    model = family.build()
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        traced = trace(model, inputs)
        assert torch.equal(traced(inputs["input_ids"]), model(**inputs).logits)
