"""A patched model is saved as the model it is; a pruned cache can be written down and read back."""

import io
import pickle

import pytest
import torch
from conversation import Conversation
from model_runs import FOUR_STAGES, both_layouts, continuation, logits_of
from tiny_parts import text_of
from transformers import AutoModelForImageTextToText

import vtfast
from vtfast import Prune, StateError


def files(folder):
    """Everything in a folder: names and bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@both_layouts
def test_a_patched_model_is_saved_byte_for_byte_as_an_unpatched_one(family, path, tmp_path):
    """Weights, configuration and generation configuration contain nothing of vtfast."""
    model = family.build()
    model.save_pretrained(tmp_path / "plain")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        continuation(model, family.inputs("single"), steps=2)
        model.save_pretrained(tmp_path / "patched")
    assert files(tmp_path / "patched") == files(tmp_path / "plain")


@both_layouts
def test_what_was_saved_while_patched_loads_as_the_unpatched_model(family, path, tmp_path):
    model, inputs = family.build(), family.inputs("batch")
    expected = logits_of(family, model, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert not vtfast.is_patched(loaded)
    assert text_of(loaded).config._attn_implementation == "sdpa"
    assert torch.equal(logits_of(family, loaded, inputs), expected)


@both_layouts
def test_the_state_of_a_patched_model_is_that_of_an_unpatched_one(family, path):
    model = family.build()
    before = model.state_dict()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        after = model.state_dict()
        model.load_state_dict(before)  # strictly
    assert list(after) == list(before)
    assert all(
        after[name] is before[name] or torch.equal(after[name], before[name]) for name in after
    )


def through_pickle(what):
    return pickle.loads(pickle.dumps(what))


def through_torch(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@both_layouts
def test_a_patched_model_that_is_written_down_whole_comes_back_patched(family, path):
    """Everything a plan refers to must be picklable: once a dtype check was a lambda."""
    model, inputs = family.build(), family.inputs("batch")
    plan = [Prune(0, "diversity", 0.6), Prune(3, "topk", 0.2)]
    with vtfast.patch(model, plan, path=path):
        copy = through_torch(model)  # before it has run: then transformers' hooks cannot be
        expected = logits_of(family, model, inputs)
    assert torch.equal(logits_of(family, copy, inputs), expected)
    vtfast.unpatch(copy)
    assert torch.equal(logits_of(family, copy, inputs), logits_of(family, model, inputs))


@pytest.mark.parametrize("through", [through_pickle, through_torch])
@both_layouts
def test_a_generation_goes_on_from_a_cache_that_was_written_down(family, path, through):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        talk = Conversation(family, model, inputs)
        talk.step()
        original, talk.cache = talk.cache, through(talk.cache)
        del original
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@both_layouts
def test_a_written_cache_goes_on_in_another_model_patched_alike(family, path):
    inputs = family.inputs("batch")
    model, other = family.build(), family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        talk = Conversation(family, model, inputs)
        talk.step()
    talk.model, talk.cache = other, through_pickle(talk.cache)
    with vtfast.patch(other, FOUR_STAGES, path=path):
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@both_layouts
def test_a_written_cache_remembers_the_plan_that_pruned_it(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        talk = Conversation(family, model, inputs)
    talk.cache = through_pickle(talk.cache)
    with (
        vtfast.patch(model, FOUR_STAGES[:2], path=path),
        pytest.raises(StateError, match=r"pruned by the plan.*start a new cache"),
    ):
        talk.step()
