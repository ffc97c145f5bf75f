"""Labels that a visual token or padding would predict are ignored, or refused on request."""

import warnings

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, both_layouts, fed, gone
from tiny_models import FAMILIES
from tiny_parts import IMAGE, VIDEO

import vtfast
from vtfast import InputError, Prune

EARLY = [Prune(0, "diversity", 0.5)]


def tutorial_labels(inputs):
    """What collators make that hide nothing but padding and placeholders."""
    hidden = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    return inputs["input_ids"].masked_fill(hidden | (inputs["attention_mask"] == 0), -100)


def counted(inputs):
    """Labels that are predicted from text, and how many others there were."""
    labels = tutorial_labels(inputs)
    mute = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == VIDEO)
    mute |= inputs["attention_mask"] == 0
    after = torch.cat([torch.zeros_like(mute[:, :1]), mute[:, :-1]], 1)
    return labels.masked_fill(after, -100), int((after & (labels != -100)).sum())


NAMES = [("llava", "single"), ("llava", "batch"), ("qwen", "batch"), ("qwen", "video")]


@pytest.mark.parametrize(("name", "case"), NAMES, ids=map("-".join, NAMES))
def test_labels_of_the_usual_collators_train_with_one_warning_that_counts(name, case):
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs(case)
    labels, (expected, ignored) = tutorial_labels(inputs), counted(inputs)
    with vtfast.patch(model, EARLY, record=True) as handle:
        with pytest.warns(UserWarning, match=f"^{ignored} labels .*are ignored"):
            loss = model(**fed(family, inputs), labels=labels).loss
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = model(**fed(family, inputs), labels=labels).loss
        same = model(**fed(family, inputs), labels=expected).loss
    assert loss == again == same
    oracle = Oracle(family.build(attention="eager"), inputs)
    logits = oracle.logits(gone(inputs, handle.report.kept))
    predicted = logits[:, :-1].flatten(0, 1)
    right = torch.nn.functional.cross_entropy(predicted, expected[:, 1:].flatten())
    torch.testing.assert_close(loss, right, rtol=0, atol=ATOL)
    assert labels.equal(tutorial_labels(inputs))  # the caller's are not changed


@both_layouts
@torch.no_grad()
def test_strict_labels_are_refused_with_the_fix(family, path):
    model, inputs = family.build(), family.inputs("single")
    labels = tutorial_labels(inputs)
    with vtfast.patch(model, EARLY, path=path, strict_labels=True):
        with pytest.raises(InputError, match=rf"^{counted(inputs)[1]} labels .*-100"):
            model(**fed(family, inputs), labels=labels)
        model(**fed(family, inputs), labels=counted(inputs)[0])


@both_layouts
@torch.no_grad()
def test_labels_that_were_shifted_beforehand_are_ignored_too(family, path):
    model, inputs = family.build(), family.inputs("single")
    labels, (expected, _) = tutorial_labels(inputs), counted(inputs)
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    with vtfast.patch(model, EARLY, path=path):
        right = model(**fed(family, inputs), labels=expected).loss
        with pytest.warns(UserWarning, match="are ignored"):
            loss = model(**fed(family, inputs), labels=labels, shift_labels=shifted).loss
    assert loss == right


@both_layouts
@torch.no_grad()
def test_a_plan_that_keeps_all_ignores_no_label(family, path):
    model, inputs = family.build(), family.inputs("single")
    call = {**fed(family, inputs), "labels": tutorial_labels(inputs)}
    expected = model(**call).loss
    with vtfast.patch(model, keep=1.0, path=path, strict_labels=True):
        assert model(**call).loss == expected


@torch.no_grad()
def test_a_trainers_count_of_labels_leaves_out_those_that_are_ignored():
    """transformers' Trainer divides the loss by a count that it made of the labels it was given."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    labels, (expected, _) = tutorial_labels(inputs), counted(inputs)
    call, items = fed(family, inputs), int((labels[:, 1:] != -100).sum())
    with vtfast.patch(model, EARLY):
        right = model(**call, labels=expected).loss
        with pytest.warns(UserWarning, match="are ignored"):
            loss = model(**call, labels=labels, num_items_in_batch=items).loss
        found = model(**call, labels=labels, num_items_in_batch=torch.tensor(items)).loss
    torch.testing.assert_close(loss, right)
    torch.testing.assert_close(found, right)


@torch.no_grad()
def test_a_call_whose_labels_are_all_ignored_has_a_loss_of_0_in_a_trainer():
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, int((inputs["input_ids"] == IMAGE).nonzero()[-1, 1]) + 1] = 5
    with vtfast.patch(model, EARLY), pytest.warns(UserWarning, match="^1 labels .* ignored"):
        loss = model(**fed(family, inputs), labels=labels, num_items_in_batch=7).loss
    assert loss == 0


@both_layouts
@torch.no_grad()
def test_int_budgets_that_drop_nothing_ignore_no_label(family, path):
    model, inputs = family.build(), family.inputs("single")
    call = {**fed(family, inputs), "labels": tutorial_labels(inputs)}
    expected = model(**call).loss
    with vtfast.patch(model, [Prune(2, "random", 10_000)], path=path, strict_labels=True):
        assert model(**call).loss == expected
