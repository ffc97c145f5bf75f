"""What a call returns besides the logits, value by value: hidden states, attentions, losses."""

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, fed, gone, logits_of
from tiny_models import FAMILIES
from tiny_parts import LAYERS

import vtfast
from vtfast import Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
NO_SCORES = [Prune(0, "diversity", 0.5), Prune(3, "random", 0.2)]
KEEP_ALL = [Prune(0, "diversity", 1.0), Prune(3, "random", 1.0)]


def alive_at(oracle, lost, layer):
    """Bool [batch, length]: the columns that the input of `layer` still has."""
    return oracle.survivors({at: columns for at, columns in lost.items() if at <= layer})


def rows_of(rectangle, alive):
    """Real tokens of [batch, longest, D], right-aligned, or of [1, tokens, D]."""
    if len(rectangle) < len(alive):
        return rectangle[0]
    lengths = alive.sum(1).tolist()
    return torch.cat([row[len(row) - n :] for row, n in zip(rectangle, lengths, strict=True)])


# -- hidden states ---------------------------------------------------------------------------------


@both_layouts
def test_hidden_states_are_the_oracles(family, path):
    """The first is what entered layer 0, pruned; each other is what a layer put out."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        states = model(**fed(family, inputs), output_hidden_states=True).hidden_states
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, handle.report.kept)
    assert len(states) == LAYERS + 1
    for layer, state in enumerate(states[:-1]):
        alive = alive_at(oracle, lost, max(0, layer - 1))
        whole = oracle.put_out(layer - 1, lost) if layer else oracle.hidden(0, lost)
        torch.testing.assert_close(rows_of(state, alive), whole[alive], rtol=0, atol=2 * ATOL)
    alive = alive_at(oracle, lost, LAYERS)
    expected = oracle.text.norm(oracle.hidden(LAYERS, lost))[alive]
    torch.testing.assert_close(states[-1][alive], expected, rtol=0, atol=2 * ATOL)


@both_layouts
def test_generate_returns_the_hidden_states_of_every_step(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_hidden_states=True,
        )
    length = inputs["input_ids"].shape[1]
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, handle.report.kept)
    new = out.sequences[:, length:-1]
    assert len(out.hidden_states) == 4
    for layer in range(1, LAYERS):
        steps = torch.cat([step[layer] for step in out.hidden_states[1:]], 1)
        expected = oracle.hidden(layer, lost, new)[:, length:]
        torch.testing.assert_close(steps, expected, rtol=0, atol=ATOL)


# -- attention maps --------------------------------------------------------------------------------


@families
def test_attention_maps_are_the_oracles(family):
    """Over the tokens each layer still has; padding is in front."""
    model, inputs = family.build(attention="eager"), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, record=True) as handle, torch.no_grad():
        maps = model(**fed(family, inputs), output_attentions=True).attentions
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, handle.report.kept)
    assert len(maps) == LAYERS
    for layer, weights in enumerate(maps):
        expected, alive = oracle.attention(layer, lost), alive_at(oracle, lost, layer)
        for row, there in enumerate(alive):
            n = int(there.sum())
            got = weights[row, :, -n:, -n:]
            torch.testing.assert_close(got, expected[row][:, there][:, :, there], rtol=0, atol=3e-5)


@families
def test_attention_maps_of_a_decoding_step_are_the_oracles(family):
    model, inputs = family.build(attention="eager"), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, record=True) as handle:
        out = model.generate(
            **inputs,
            max_new_tokens=2,
            do_sample=False,
            return_dict_in_generate=True,
            output_attentions=True,
        )
    length = inputs["input_ids"].shape[1]
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, handle.report.kept)
    new = out.sequences[:, length : length + 1]
    for layer, weights in enumerate(out.attentions[1]):
        expected = oracle.attention(layer, lost, new)[:, :, -1:]
        there = torch.nn.functional.pad(alive_at(oracle, lost, layer), (0, 1), value=True)
        for row, columns in enumerate(there):
            got = weights[row, :, :, -int(columns.sum()) :]
            torch.testing.assert_close(got, expected[row][:, :, columns], rtol=0, atol=1e-5)


# -- logits of some tokens -------------------------------------------------------------------------

ROWS = [
    pytest.param(1, slice(-1, None), id="last"),
    pytest.param(4, slice(-4, None), id="last-four"),
    pytest.param(0, slice(None), id="all"),
    pytest.param(torch.tensor([-1, 1, -3]), [-1, 1, -3], id="by-number"),
]


@pytest.mark.parametrize(("rows", "expected"), ROWS)
@both_layouts
def test_logits_to_keep_are_those_rows_of_all_logits(family, path, rows, expected):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, NO_SCORES, path=path), torch.no_grad():
        whole = logits_of(family, model, inputs)
        some = model(**fed(family, inputs), logits_to_keep=rows).logits
    torch.testing.assert_close(some, whole[:, expected], rtol=0, atol=1e-5)


# -- labels ----------------------------------------------------------------------------------------


@both_layouts
def test_keeping_all_leaves_the_loss_of_every_label_bit_identical(family, path):
    """Labels on visual tokens too: nothing is dropped, so nothing is refused."""
    model, inputs = family.build(), family.inputs("batch")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = model(**fed(family, inputs), labels=labels).loss
        with vtfast.patch(model, KEEP_ALL, path=path):
            assert torch.equal(model(**fed(family, inputs), labels=labels).loss, expected)


@both_layouts
def test_the_loss_of_a_padded_batch_is_the_oracles(family, path):
    """Text before, between and after pictures has labels; whatever a picture predicts has none."""
    model, inputs = family.build(), family.inputs("batch")
    ids = inputs["input_ids"]
    predicted_by_text = torch.roll(inputs["attention_mask"].bool() & (ids < 90), 1, 1)
    predicted_by_text[:, 0] = False
    labels = ids.masked_fill(~predicted_by_text | (ids >= 90), -100)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        loss = model(**fed(family, inputs), labels=labels, prompt_length=ids.shape[1]).loss
    oracle = Oracle(family.build(attention="eager"), inputs)
    logits = oracle.logits(gone(inputs, handle.report.kept))
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    assert (labels != -100).any(1).all()
    torch.testing.assert_close(loss, expected, rtol=0, atol=ATOL)


@both_layouts
def test_a_label_inside_a_picture_is_ignored_in_any_sample(family, path):
    model, inputs = family.build(), family.inputs("batch")
    labels = inputs["input_ids"].clone()
    labels[:, :-3], end = -100, labels.shape[1] - 3
    with torch.no_grad(), vtfast.patch(model, FOUR_STAGES, path=path):
        expected = model(**fed(family, inputs), labels=labels).loss
        column = (inputs["input_ids"][2] == 90).nonzero()[3]
        labels[2, column] = 5
        with pytest.warns(UserWarning, match="^1 labels .* ignored"):
            loss = model(**fed(family, inputs), labels=labels, prompt_length=end).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=ATOL)
