"""Padding on the right: every sample is that sample alone, whatever the batch."""

import pytest
import torch
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, logits_of
from turns import Turns

import vtfast
from vtfast import InputError

ORDER = [2, 0, 1]  # the longest sample first, in the middle, and last


def right_padded(inputs):
    """The same samples, padded on the right."""
    order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
    return {k: v.gather(1, order) if v.shape == order.shape else v for k, v in inputs.items()}


@both_layouts
def test_every_sample_has_the_logits_and_picks_of_that_sample_alone(family, path):
    samples = [family.named("batch")[i] for i in ORDER]
    model, inputs = family.build(), right_padded(family.batch(samples))
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        together, kept = logits_of(family, model, inputs), handle.report.kept
        for row, sample in enumerate(samples):
            alone = logits_of(family, model, family.batch([sample]))[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=ATOL)
            if sample.pictures:
                for layer, rows in handle.report.kept.items():
                    assert torch.equal(kept[layer][row], rows[0])


@both_layouts
def test_every_sample_goes_on_as_that_sample_alone(family, path):
    """A sample's next token is read at its last token; decoding appends after the padding."""
    parts, model = [family.standard["batch"][i] for i in ORDER], family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        turns = Turns(family, model, handle, rows=3)
        turns.say(*parts, side="right")
        turns.step(6)
        turns.check()
        for sample, said in zip(family.samples(*parts), turns.ids[:, -6:], strict=True):
            alone = continuation(model, family.batch([sample]), steps=6)
            assert torch.equal(said, alone[0])


@both_layouts
def test_generating_after_right_padding_is_refused_with_the_fix(family, path):
    """Nothing is predicted at padding: the next token was the arg max of zeros, silently."""
    samples, model = [family.named("batch")[i] for i in ORDER], family.build()
    inputs = right_padded(family.batch(samples))
    with (
        vtfast.patch(model, FOUR_STAGES, path=path),
        pytest.raises(InputError, match=r"padding.*padding_side=.left."),
    ):
        continuation(model, inputs, steps=2)
