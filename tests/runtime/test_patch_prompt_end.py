"""Methods see the prompt and nothing after it: answers, labels and drafts choose no tokens.

A generated answer that is scored again by one forward over prompt and answer therefore gets the
log-probabilities it had in `generate`.
"""

import warnings

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, fed, first_rows, probing
from packed_samples import alone, in_one_row
from tiny_models import FAMILIES
from tiny_parts import IMAGE

import vtfast
from vtfast import InputError, Prune

PLANS = {
    "fastv": [Prune(2, "topk", 0.5)],
    "this-layer": [Prune(0, "topk", 0.5), Prune(3, "topk", 0.2, score_layer="this")],
    "dart": [Prune(2, "dart", 0.4)],
    "cdpruner": [Prune(0, "cdpruner", 0.5), Prune(3, "cdpruner", 0.2)],
    "four-stages": FOUR_STAGES,
    "uniform": [Prune(1, "uniform", 0.5)],
    "own-method": [Prune(2, "test-probe", 0.5)],
}
STEPS = 4
TOLD = [(plan, "labels") for plan in PLANS] + [
    ("fastv", how) for how in ("prompt_length", "one-a-sample", "tensor", "logits_to_keep")
]


def far_from_the_mean(context):
    """A method that reads all that a method can see."""
    around = context.sequences
    assert len(context.text) == sum(around.lengths) - len(around.visual)
    means = [part.mean(0) for part in around.hidden.split(around.lengths)]
    of_token = torch.repeat_interleave(
        torch.tensor(around.samples), torch.tensor(context.segments.lengths)
    )
    far = (context.features - torch.stack(means)[of_token]).norm(dim=-1) + context.scores
    parts = far.split(context.segments.lengths)
    chosen = [part.topk(k).indices for part, k in zip(parts, context.keep, strict=True)]
    starts = context.segments.offsets
    return torch.cat([c + start for c, start in zip(chosen, starts, strict=False)])


def answered(family, model, inputs):
    """Log-probabilities of a generated answer, and the call that scores it again."""
    out = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    said = out.sequences[:, -STEPS:]
    call = {**inputs, "input_ids": out.sequences}
    call["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(said)], 1)
    if "mm_token_type_ids" in call:
        text = torch.zeros_like(said, dtype=torch.int32)
        call["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], text], 1)
    return of(torch.stack(out.logits, 1), said), fed(family, call), said


def of(logits, said):
    return logits.log_softmax(-1).gather(-1, said[..., None])[..., 0]


def told(how, call, said):
    """What tells a forward where the prompt ends."""
    rows, end = len(said), call["input_ids"].shape[1] - STEPS
    labels = torch.full_like(call["input_ids"], -100)
    labels[:, end:] = said
    return {
        "labels": {"labels": labels},
        "prompt_length": {"prompt_length": end},
        "one-a-sample": {"prompt_length": [end] * rows},
        "tensor": {"prompt_length": torch.full((rows,), end)},
        "logits_to_keep": {"logits_to_keep": STEPS + 1},
    }[how]


@pytest.mark.parametrize(("plan", "how"), TOLD)
@both_layouts
@torch.no_grad()
def test_an_answer_scored_again_has_the_probabilities_it_was_generated_with(
    family, path, plan, how
):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, PLANS[plan], path=path), probing(far_from_the_mean):
        expected, call, said = answered(family, model, inputs)
        logits = model(**call, **told(how, call, said), use_cache=False).logits
    assert (of(logits[:, -STEPS - 1 : -1], said) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("how", ["labels", "prompt_length", "logits_to_keep"])
@both_layouts
@torch.no_grad()
def test_generate_and_a_forward_over_the_answer_make_equal_picks_by_text(family, path, how):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, PLANS["cdpruner"], path=path, record=True) as handle:
        _, call, said = answered(family, model, inputs)
        expected = handle.report.kept
        model(**call, **told(how, call, said), use_cache=False)
        got = handle.report.kept
    assert list(got) == list(expected) == [0, 3]
    for layer in got:
        assert all(map(torch.equal, got[layer], expected[layer]))
        assert any(map(len, got[layer]))


@both_layouts
@torch.no_grad()
def test_text_is_the_prompts_without_its_pictures(family, path):
    """Embeddings at layer 0, and what enters the layer deeper."""
    model, inputs, seen = family.build(), family.inputs("batch"), {}

    def look(context):
        seen[context.layer] = context.text, context.text_segments.lengths
        return first_rows(context)

    plan = [Prune(0, "test-probe", 0.5), Prune(3, "test-probe", 0.25)]
    with vtfast.patch(model, plan, path=path), probing(look):
        _, call, said = answered(family, model, inputs)
        in_generate = dict(seen)
        model(**call, **told("labels", call, said), use_cache=False)
    is_text = (inputs["attention_mask"] == 1) & (inputs["input_ids"] != IMAGE)
    words = model.get_input_embeddings()(inputs["input_ids"][is_text])
    assert torch.equal(seen[0][0], words)
    for layer in (0, 3):
        assert seen[layer][1] == in_generate[layer][1] == tuple(is_text.sum(1).tolist())
        assert (seen[layer][0] - in_generate[layer][0]).abs().max() < 1e-4
    assert not torch.equal(seen[3][0], words)


@both_layouts
@torch.no_grad()
def test_right_padding_behind_the_answer_changes_nothing(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, PLANS["fastv"], path=path):
        expected, call, said = answered(family, model, inputs)
        padding = {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "position_ids": 1}
        padded = {
            name: torch.nn.functional.pad(value, (0, 3), value=padding[name])
            if name in padding
            else value
            for name, value in call.items()
        }
        end = call["input_ids"].shape[1] - STEPS
        logits = model(**padded, prompt_length=end, use_cache=False).logits
    assert (of(logits[:, end - 1 : -4], said) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("how", ["labels", "prompt_length"])
@both_layouts
@torch.no_grad()
def test_every_packed_sample_has_a_prompt_of_its_own(family, path, how):
    model = family.build()
    parts = [alone(family, model, family.named("batch")[i]) for i in (1, 2)]
    ends = [part["input_ids"].shape[1] - n for part, n in zip(parts, (3, 2), strict=True)]
    row = in_one_row(parts)
    tells = {"prompt_length": ends}
    if how == "labels":
        labels = [part["input_ids"].clone() for part in parts]
        for label, end in zip(labels, ends, strict=True):
            label[:, :end] = -100
        tells = {"labels": torch.cat(labels, 1)}
    with vtfast.patch(model, PLANS["fastv"], path=path, record=True) as handle:
        model(**row, **tells, use_cache=False)
        together = handle.report.kept[2]
        start = 0
        for part, end, kept in zip(parts, ends, together, strict=True):
            model(**part, prompt_length=end, use_cache=False)
            assert torch.equal(handle.report.kept[2][0] + start, kept)
            start += part["input_ids"].shape[1]


@both_layouts
@torch.no_grad()
def test_what_the_caller_says_goes_before_labels(family, path):
    """Labels of a whole conversation begin before the picture."""
    model, inputs = family.build(), family.inputs("single")
    end = inputs["input_ids"].shape[1] - 3
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with vtfast.patch(model, PLANS["fastv"], path=path, record=True) as handle:
        model(**fed(family, inputs), prompt_length=end)
        expected = handle.report.kept[2]
        with pytest.warns(UserWarning, match="are ignored"):
            model(**fed(family, inputs), labels=labels, prompt_length=end)
    assert torch.equal(handle.report.kept[2][0], expected[0])


@pytest.mark.parametrize("plan", ["fastv", "cdpruner"])
@both_layouts
@torch.no_grad()
def test_labels_before_the_picture_say_nothing_of_the_prompt_and_warn_once(family, path, plan):
    model, inputs = family.build(), family.inputs("single")
    picture = inputs["input_ids"] == IMAGE
    labels = inputs["input_ids"].masked_fill(picture, -100)
    labels[:, 1:][picture[:, :-1]] = -100  # of tokens that a picture predicts
    with vtfast.patch(model, PLANS[plan], path=path, record=True) as handle:
        model(**fed(family, inputs))
        expected = handle.report.kept
        with pytest.warns(UserWarning, match=r"unknown where the prompt ends.*prompt_length"):
            model(**fed(family, inputs), labels=labels)
        assert {n: k[0].tolist() for n, k in handle.report.kept.items()} == {
            n: k[0].tolist() for n, k in expected.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**fed(family, inputs), labels=labels)
    with vtfast.patch(model, [Prune(2, "random", 0.5)], path=path), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**fed(family, inputs), labels=labels)


WRONG = {
    "nothing": (0, "expected 1 to"),
    "negative": (-3, "expected 1 to"),
    "too-long": (10_000, "expected 1 to"),
    "in-the-picture": (20, r"a picture ends at token \d+"),
    "several": ([40, 40], "2 entries for 1 samples"),
    "half": (44.5, "an int or one for each sample"),
    "a-word": ("end", "an int or one for each sample"),
    "true": (True, "an int or one for each sample"),
    "a-matrix": (torch.ones(1, 1, dtype=torch.long), "an int or one for each sample"),
}


@pytest.mark.parametrize("plan", ["fastv", "cdpruner"])
@pytest.mark.parametrize(("length", "match"), WRONG.values(), ids=WRONG)
@both_layouts
def test_a_prompt_that_cannot_end_there_is_refused(family, path, length, match, plan):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, PLANS[plan], path=path), torch.no_grad():
        with pytest.raises(InputError, match=match):
            model(**fed(family, inputs), prompt_length=length)
        model(**fed(family, inputs))


def test_a_prompt_that_ends_in_padding_is_refused():
    family = FAMILIES["llava"]
    model = family.build()
    inputs = family.batch(family.samples([3], *family.standard["single"]))
    with (
        vtfast.patch(model, PLANS["fastv"]),
        pytest.raises(InputError, match=r"sample 0.*padding.*columns"),
        torch.no_grad(),
    ):
        model(**fed(family, inputs), prompt_length=[4, 48])


@both_layouts
@torch.no_grad()
def test_a_prompt_without_pictures_takes_its_length_too(family, path):
    """So that a caller may pass it always."""
    model = family.build()
    inputs = family.batch(family.samples([9]))
    expected = model(**inputs).logits
    with vtfast.patch(model, PLANS["fastv"], path=path):
        assert torch.equal(model(**inputs, prompt_length=4).logits, expected)


# -- drafts ----------------------------------------------------------------------------------------

LOOKED_UP = ("fastv", "dart", "cdpruner", "four-stages", "own-method")


@pytest.mark.parametrize("found", [True, False], ids=["a-draft", "no-draft"])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("plan", [PLANS[p] for p in LOOKED_UP], ids=LOOKED_UP)
@both_layouts
def test_prompt_lookup_says_what_greedy_decoding_says(family, path, plan, positions, found):
    """Whether or not the end of the prompt repeats something, so that a draft stands behind it."""
    model, inputs = family.build(), family.inputs("single")
    if found:
        inputs["input_ids"][:, -2:] = inputs["input_ids"][:, -6:-4]
    with (
        vtfast.patch(model, plan, path=path, positions=positions),
        probing(far_from_the_mean),
    ):
        expected = continuation(model, inputs, steps=12)
        assert torch.equal(
            continuation(model, inputs, steps=12, prompt_lookup_num_tokens=3), expected
        )
