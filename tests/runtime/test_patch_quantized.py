"""Weight-only quantized models are pruned as any other: torchao's int8."""

import sys
from pathlib import Path

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, gone, logits_of
from tiny_models import FAMILIES
from tiny_parts import text_of

import vtfast
from vtfast import Prune
from vtfast.information.records import fingerprint

# `make test` installs torchao beside the environment: transformers imports it wherever it finds it,
# which writes lines to stderr.
sys.path.append(str(Path(sys.prefix, "torchao")))
torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test")
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
PARTS = {"all": lambda model: model, "language-model": lambda model: text_of(model)}


def quantized(family, part=PARTS["all"], attention="sdpa"):
    model = family.build(attention=attention)
    torchao.quantize_(part(model), torchao.Int8WeightOnlyConfig(version=2))
    return model


@both_layouts
def test_keeping_all_of_a_quantized_model_is_bit_identical(family, path):
    model, inputs = quantized(family), family.inputs("batch")
    expected = logits_of(family, model, inputs)
    assert not torch.equal(expected, logits_of(family, family.build(), inputs))
    with vtfast.patch(model, [Prune(2, "topk", 1.0)], path=path):
        assert torch.equal(logits_of(family, model, inputs), expected)
    assert torch.equal(logits_of(family, model, inputs), expected)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@both_layouts
def test_a_quantized_model_has_the_oracles_logits(family, path, part):
    model, inputs = quantized(family, part), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits = logits_of(family, model, inputs)
    lost = gone(inputs, handle.report.kept)
    oracle = Oracle(quantized(family, part, "eager"), inputs)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)


@both_layouts
def test_a_quantized_model_generates_the_oracles_tokens(family, path):
    model, inputs = quantized(family), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        tokens = continuation(model, inputs, steps=8)
    lost = gone(inputs, handle.report.kept)
    assert torch.equal(tokens, Oracle(quantized(family, attention="eager"), inputs).greedy(lost, 8))


@families
def test_a_log_tells_a_quantized_model_from_its_original(family):
    """Quantized weights cannot be flattened, and every command with a log failed on them."""
    assert fingerprint(quantized(family)) == fingerprint(quantized(family))
    assert fingerprint(quantized(family)) != fingerprint(family.build())
