"""A plan that keeps everything leaves every bit as it was."""

import pytest
import torch
from model_runs import both_layouts, continuation, logits_of

import vtfast
from vtfast import Prune

KEEP_ALL = [
    Prune(0, "diversity", 1.0),
    Prune(2, "topk", 1.0),
    Prune(3, "random", 1.0),
    Prune(5, "random", 1000),  # more tokens than any image has
]
KINDS = [
    pytest.param("single", torch.float32, id="fp32-one-row"),
    pytest.param("batch", torch.float32, id="fp32-left-padded"),
    pytest.param("single", torch.bfloat16, id="bf16-one-row"),
    pytest.param("batch", torch.bfloat16, id="bf16-left-padded"),
]
kinds = pytest.mark.parametrize(("name", "dtype"), KINDS)


@kinds
@both_layouts
def test_keeping_all_leaves_the_logits_bit_identical(family, path, name, dtype):
    model, inputs = family.build(dtype), family.inputs(name, dtype)
    expected = logits_of(family, model, inputs)
    with vtfast.patch(model, KEEP_ALL, path=path):
        assert torch.equal(logits_of(family, model, inputs), expected)


@kinds
@both_layouts
def test_keeping_all_leaves_twenty_generated_tokens_and_their_scores_bit_identical(
    family, path, name, dtype
):
    model, inputs = family.build(dtype), family.inputs(name, dtype)
    options = {
        "max_new_tokens": 20,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    expected = model.generate(**inputs, **options)
    with vtfast.patch(model, KEEP_ALL, path=path):
        got = model.generate(**inputs, **options)
    assert torch.equal(got.sequences, expected.sequences)
    assert torch.equal(torch.stack(got.logits), torch.stack(expected.logits))


@both_layouts
def test_text_without_a_picture_is_bit_identical_under_any_plan(family, path):
    model = family.build()
    inputs = family.batch(family.samples([9], [4]))
    expected = logits_of(family, model, inputs), continuation(model, inputs)
    with vtfast.patch(model, [Prune(0, "drop", 0)], path=path):
        assert torch.equal(logits_of(family, model, inputs), expected[0])
        assert torch.equal(continuation(model, inputs), expected[1])


@both_layouts
def test_layers_before_the_first_stage_are_bit_identical(family, path):
    """Except padding, which the packed layout drops at layer 0 if some stage will drop tokens."""
    model, inputs = family.build(), family.inputs("batch" if path == "padded" else "single")
    with torch.no_grad():
        expected = model.model(**inputs, output_hidden_states=True).hidden_states
        with vtfast.patch(model, [Prune(3, "random", 0.2)], path=path):
            got = model.model(**inputs, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(got[:3], expected[:3], strict=True))
