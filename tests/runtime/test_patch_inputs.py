"""Inputs a patched model cannot prune are refused in the forward; registered methods; labels."""

import pytest
import torch
from model_oracle import Oracle
from model_runs import (
    ATOL,
    FOUR_STAGES,
    OLD,
    both_layouts,
    continuation,
    fed,
    first_rows,
    gone,
    logits_of,
    probing,
)
from tiny_models import FAMILIES

import vtfast
from vtfast import InputError, Prune, StateError

EARLY = [Prune(0, "diversity", 0.5)]


# -- a registered method ---------------------------------------------------------------------------


@vtfast.register_method("test-longest")
def longest(context):
    """The tokens with the largest norm, in ten lines."""
    norms = context.features.norm(dim=-1)
    rows, start = [], 0
    for length, count in zip(context.segments.lengths, context.keep, strict=True):
        rows.append(norms[start : start + length].topk(count).indices + start)
        start += length
    return torch.cat(rows)


@both_layouts
def test_a_registered_method_gets_batching_generation_and_positions(family, path):
    plan = [Prune(0, "test-longest", 0.5), Prune(3, "test-longest", 0.2)]
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        tokens = continuation(model, inputs)
    lost = gone(inputs, handle.report.kept)
    oracle = Oracle(family.build(attention="eager"), inputs)
    assert torch.equal(tokens, oracle.greedy(lost, 20))


@both_layouts
def test_a_method_sees_what_is_there(family, path):
    """Features, segments and budgets of the images still there; features are the oracle's."""
    plan = [Prune(0, "random", 0.5), Prune(3, "test-probe", 0.2, flavour="sweet")]
    model, inputs, seen = family.build(), family.inputs("batch"), []

    def look(context):
        seen.append((context.features.clone(), context.scores.clone(), context))
        return first_rows(context)

    with vtfast.patch(model, plan, path=path, seed=5, record=True) as handle, probing(look):
        logits_of(family, model, inputs)
    [(features, scores, context)] = seen
    sizes = [family.tokens_of(p) for s in family.named("batch") for p in s.pictures]
    assert context.segments.lengths == tuple(plan[0].count(n, n) for n in sizes)
    assert context.keep == tuple(plan[1].count(n, n) for n in sizes)
    assert (context.layer, context.seed, context.options["flavour"]) == (3, 5, "sweet")
    assert context.image_hash.shape == (3,)
    kept = handle.report.kept[0]
    lost = gone(inputs, {0: kept})
    oracle = Oracle(family.build(attention="eager"), inputs)
    hidden, row = oracle.hidden(3, lost), oracle.attention_row(2, lost)
    expected = torch.cat([h[columns] for h, columns in zip(hidden, kept, strict=True)])
    torch.testing.assert_close(features, expected, rtol=0, atol=ATOL)
    expected = torch.cat([r[columns] for r, columns in zip(row, kept, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


@both_layouts
def test_a_method_sees_the_sequences_around_the_pictures(family, path):
    """Hidden states of all tokens, keys of the layer before, the sample of each segment, grids."""
    plan = [Prune(0, "random", 0.5), Prune(3, "test-probe", 0.2)]
    samples = family.named("batch")
    model, inputs, seen = family.build(), family.batch(samples), []

    def look(context):
        seen.append((context, context.attention, context.sequences.norm(context.features)))
        return first_rows(context)

    with vtfast.patch(model, plan, path=path, record=True) as handle, probing(look):
        logits_of(family, model, inputs)
    [(context, attention, normed)] = seen
    around, kept = context.sequences, handle.report.kept[0]
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, {0: kept})
    alive = oracle.survivors(lost)
    assert around.lengths == tuple(alive.sum(1).tolist())
    assert around.samples == (1, 2, 2)
    hidden = oracle.hidden(3, lost)
    torch.testing.assert_close(around.hidden, hidden[alive], rtol=0, atol=ATOL)
    keys = oracle.keys(2, lost)[alive]
    torch.testing.assert_close(attention.keys.flatten(1), keys, rtol=0, atol=ATOL)
    columns = torch.cat([h[c] for h, c in zip(hidden, kept, strict=True)])
    torch.testing.assert_close(normed, oracle.text.norm(columns), rtol=0, atol=ATOL)
    pictures = [picture for sample in samples for picture in sample.pictures]
    if family.name == "llava":
        assert context.grids == ((1, 6, 6),) * 3
    elif family.any_size:
        assert context.grids == tuple((t, h // 2, w // 2) for t, h, w in (p.grid for p in pictures))


WRONG_ANSWERS = [
    pytest.param(lambda context: first_rows(context)[:-1], "shape", id="too-few"),
    pytest.param(lambda context: first_rows(context)[None], "shape", id="two-dimensions"),
    pytest.param(lambda context: first_rows(context).float(), "float32", id="floats"),
    pytest.param(lambda context: first_rows(context).tolist(), "list", id="a-list"),
    pytest.param(lambda context: None, "NoneType", id="nothing"),
]


@pytest.mark.parametrize(("answer", "match"), WRONG_ANSWERS)
def test_a_method_that_answers_wrongly_is_told_what_was_expected(answer, match):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    with (
        vtfast.patch(model, [Prune(2, "test-probe", 0.5)]),
        probing(answer),
        pytest.raises(InputError, match=f"test-probe.*{match}"),
    ):
        logits_of(family, model, inputs)


# -- what a forward refuses ------------------------------------------------------------------------


@both_layouts
def test_changing_the_attention_while_patched_is_refused_with_the_fix(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        model.set_attn_implementation("eager")
        with pytest.raises(StateError, match=r"eager.*unpatch"):
            logits_of(family, model, inputs)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_attention_maps_are_refused_on_the_packed_path(family):
    model, inputs = family.build(), family.inputs("single")
    with (
        vtfast.patch(model, FOUR_STAGES, path="packed"),
        pytest.raises(InputError, match=r"packed.*attention maps.*padded"),
        torch.no_grad(),
    ):
        model(**inputs, output_attentions=True)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_gradients_are_refused_on_the_packed_path(family):
    model, inputs = family.build(), family.inputs("single")
    with (
        vtfast.patch(model, FOUR_STAGES, path="packed"),
        pytest.raises(InputError, match=r"packed.*gradients.*no_grad"),
    ):
        model(**inputs)


@pytest.mark.skipif(OLD, reason="before 5.23 prompts in chunks lose their pictures, patched or not")
@both_layouts
def test_a_prompt_given_in_chunks_that_split_an_image_is_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, EARLY, path=path), pytest.raises(InputError, match="chunk"):
        continuation(model, inputs, prefill_chunk_size=16)


# -- labels ----------------------------------------------------------------------------------------


def labelled(inputs, columns):
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, columns] = inputs["input_ids"][:, columns]
    return labels


@both_layouts
def test_the_loss_of_other_labels_is_the_oracles(family, path):
    model, inputs = family.build(), family.inputs("single")
    labels = labelled(inputs, slice(-4, None))
    with vtfast.patch(model, EARLY, path=path, record=True) as handle, torch.no_grad():
        loss = model(**fed(family, inputs), labels=labels).loss
    oracle = Oracle(family.build(attention="eager"), inputs)
    logits = oracle.logits(gone(inputs, handle.report.kept))
    expected = torch.nn.functional.cross_entropy(logits[0, -5:-1], labels[0, -4:])
    torch.testing.assert_close(loss, expected, rtol=0, atol=ATOL)
