"""The model oracle itself: with nothing dropped it is transformers."""

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, continuation, fed, logits_of
from tiny_models import FAMILIES

BATCHES = [
    pytest.param(FAMILIES["llava"], "single", id="llava-single"),
    pytest.param(FAMILIES["llava"], "batch", id="llava-batch"),
    pytest.param(FAMILIES["qwen"], "single", id="qwen-single"),
    pytest.param(FAMILIES["qwen"], "batch", id="qwen-batch"),
    pytest.param(FAMILIES["qwen"], "video", id="qwen-video"),
]
on_batches = pytest.mark.parametrize(("family", "name"), BATCHES)


def oracle_of(family, inputs):
    return Oracle(family.build(attention="eager"), inputs)


@on_batches
def test_without_drops_the_oracle_has_the_logits_of_transformers(family, name):
    inputs = family.inputs(name)
    oracle = oracle_of(family, inputs)
    logits = logits_of(family, family.build(), inputs)
    real = oracle.valid
    torch.testing.assert_close(logits[real], oracle.logits({})[real], rtol=0, atol=ATOL)


@on_batches
def test_without_drops_the_oracle_says_what_generate_says(family, name):
    inputs = family.inputs(name)
    expected = continuation(family.build(), inputs)
    assert torch.equal(oracle_of(family, inputs).greedy({}, 20), expected)


@pytest.mark.parametrize("layer", [0, 1, 4])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_oracles_attention_row_is_the_one_transformers_returns(family, layer):
    inputs = family.inputs("batch")
    model = family.build(attention="eager")
    with torch.no_grad():
        weights = model(**fed(family, inputs), output_attentions=True).attentions[layer]
    row = Oracle(model, inputs).attention_row(layer, {})
    torch.testing.assert_close(row, weights[:, :, -1].mean(1), rtol=0, atol=1e-6)


def test_a_dropped_token_changes_what_others_see_from_its_layer_on():
    family = FAMILIES["llava"]
    inputs = family.inputs("single")
    oracle = oracle_of(family, inputs)
    gone = {3: [torch.arange(5, 41)]}  # all of the image
    unchanged = oracle.hidden(3, {})
    assert torch.equal(oracle.hidden(3, gone), unchanged)
    before_image, after_image = slice(0, 5), slice(41, None)
    difference = (oracle.hidden(4, gone) - oracle.hidden(4, {})).abs()
    assert difference[:, before_image].max() == 0
    assert difference[:, after_image].amax(-1).min() > 1e-3


def test_what_is_dropped_before_the_first_layer_is_as_if_it_had_never_been_there():
    family = FAMILIES["llava"]
    model = family.build(attention="eager")
    inputs = family.inputs("single")
    inputs_without = {
        k: torch.cat([v[:, :5], v[:, 41:]], 1) for k, v in inputs.items() if v.ndim == 2
    }
    positions = torch.cat([torch.arange(5), torch.arange(41, inputs["input_ids"].shape[1])])[None]
    with torch.no_grad():
        expected = model(**inputs_without, position_ids=positions).logits
    logits = Oracle(model, inputs).logits({0: [torch.arange(5, 41)]})
    survivors = torch.cat([logits[:, :5], logits[:, 41:]], 1)
    torch.testing.assert_close(survivors, expected, rtol=0, atol=ATOL)
