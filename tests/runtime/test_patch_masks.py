"""Attention masks of other kinds than 0 and 1, and pictures that a mask hides."""

import pytest
import torch
from cache_name import CACHE, cache_of
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, fed, logits_of
from tiny_models import FAMILIES
from tiny_parts import IMAGE, VISION_END, VISION_START, Picture

import vtfast
from vtfast import InputError

# What transformers takes as well: any number but 0 marks a token.
KINDS = {
    "twos": lambda mask: mask * 2,
    "numbered": lambda mask: mask * torch.arange(1, len(mask) + 1)[:, None],
    "negative": lambda mask: -mask,
    "bool": lambda mask: mask.bool(),
    "bytes": lambda mask: mask.to(torch.uint8),
    "floats": lambda mask: mask.float(),
    "bfloat16": lambda mask: mask.bfloat16(),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@both_layouts
def test_every_number_but_0_marks_a_token(family, path, kind):
    model, inputs = family.build(), family.inputs("batch")
    other = {**fed(family, inputs), "attention_mask": kind(inputs["attention_mask"])}
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = logits_of(family, model, inputs)
        assert torch.equal(model(**other).logits, expected)


@both_layouts
@torch.no_grad()
def test_such_masks_work_in_later_turns_too(family, path):
    """Text on a pruned cache, several tokens and then one."""
    model, inputs = family.build(), family.inputs("batch")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    talks = []
    with vtfast.patch(model, FOUR_STAGES, path=path):
        for factor in (1, 3):
            out = model(**{**fed(family, inputs), "attention_mask": mask * factor}, use_cache=True)
            cache, seen, logits = cache_of(out), mask * factor, []
            for new in (3, 1):
                seen = torch.nn.functional.pad(seen, (0, new), value=factor)
                positions = (seen.bool().long().cumsum(1) - 1)[:, -new:]
                if family.any_size:
                    positions = positions.expand(3, -1, -1)
                call = {"input_ids": ids[:, -new:], "attention_mask": seen, CACHE: cache}
                logits.append(model(**call, position_ids=positions).logits)
            talks.append(logits)
    assert all(map(torch.equal, *talks))


# -- pictures that the mask hides ------------------------------------------------------------------


def with_a_hidden_picture(family, side):
    """A sample of text beside a hidden picture, one with a picture, and the same without that."""
    text, other = family.samples([9], [3, Picture(seed=2), 5])
    fake = family.samples([Picture(seed=5)])[0]
    own = fake.ids[1:]
    text.ids = text.ids + own if side == "right" else own + text.ids
    text.pictures = fake.pictures
    inputs = family.batch([text, other])
    hidden = torch.zeros_like(inputs["attention_mask"][0], dtype=torch.bool)
    ids = inputs["input_ids"][0]
    hidden |= (ids == IMAGE) | (ids == VISION_START) | (ids == VISION_END)
    inputs["attention_mask"][0, hidden] = 0
    return inputs


@pytest.mark.parametrize("side", ["right", "left"])
@both_layouts
@torch.no_grad()
def test_a_picture_that_is_hidden_as_a_whole_is_padding(family, path, side):
    """As LLaMA-Factory adds one to text, so that every process runs its vision tower."""
    model, inputs = family.build(), with_a_hidden_picture(family, side)
    alone = family.batch(family.samples([9], [3, Picture(seed=2), 5])[1:])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if family.any_size:
        positions = positions.expand(3, -1, -1)
    call = {**inputs, "position_ids": positions, "use_cache": False}
    text = inputs["attention_mask"][0].bool()
    expected = model(**call).logits[0, text]
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits = model(**call).logits
        report = handle.report
        model(**fed(family, alone))
    torch.testing.assert_close(logits[0, text], expected, rtol=0, atol=ATOL)
    assert set(report.tokens[0]) == {0}
    assert report.tokens[1] == handle.report.tokens[0]
    assert report.average == handle.report.average
    assert all(len(kept[0]) == 0 for kept in report.kept.values())


@both_layouts
def test_a_picture_that_is_hidden_in_part_is_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    inputs["attention_mask"][0, 8:10] = 0
    with (
        vtfast.patch(model, FOUR_STAGES, path=path),
        pytest.raises(InputError, match=r"hides 2 of a picture's .* visual tokens"),
    ):
        logits_of(family, model, inputs)


# -- pictures and placeholders that do not match ---------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no-labels"])
@both_layouts
def test_transformers_says_first_that_pictures_and_placeholders_do_not_match(
    family, path, labelled
):
    """A prompt cut off within its picture; it also ends in a picture, and has odd labels."""
    model, inputs = family.build(), family.inputs("single")
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = inputs[name][:, :20]
    labels = {"labels": inputs["input_ids"]} if labelled else {}
    with vtfast.patch(model, FOUR_STAGES, path=path, strict_labels=True), torch.no_grad():
        unpruned = pytest.warns(UserWarning, match="so nothing is pruned")
        with unpruned, pytest.raises(ValueError, match="do not match"):
            model(**inputs, **labels)
        if not labelled:
            with pytest.raises((ValueError, RuntimeError), match="match"):
                continuation(model, inputs)
        whole = FAMILIES[family.name].inputs("single")
        logits_of(family, model, whole)
