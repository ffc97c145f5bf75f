"""What a patched model cannot do is refused before anything runs, with the reason and the fix."""

import pytest
import torch
from cache_name import CACHE
from conversation import Conversation
from model_runs import FOUR_STAGES, both_layouts, continuation
from tiny_models import FAMILIES
from tiny_parts import Picture
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vtfast
from vtfast import InputError, Prune, StateError

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
paths = pytest.mark.parametrize("path", ["padded", "packed"])


class CountingCache(DynamicCache):
    """A cache class of the caller's own."""


@both_layouts
def test_a_cache_class_of_ones_own_is_refused_by_name(family, path):
    model, inputs = family.build(), family.inputs("single")
    with (
        vtfast.patch(model, FOUR_STAGES, path=path),
        pytest.raises(InputError, match=r"StaticCache, got CountingCache.*defaults"),
    ):
        continuation(model, inputs, **{CACHE: CountingCache()})


@families
def test_the_packed_layout_refuses_a_cache_that_offloads(family):
    """Its flag is set by hand: `DynamicCache(offloading=True)` wants a stream of an accelerator."""
    model, inputs, cache = family.build(), family.inputs("single"), DynamicCache()
    cache.offloading = True
    with (
        vtfast.patch(model, FOUR_STAGES, path="packed"),
        pytest.raises(InputError, match=r'packed.*offloads its layers.*path="padded"'),
    ):
        continuation(model, inputs, **{CACHE: cache})


def cache_of(family, inputs, path):
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        talk = Conversation(family, model, inputs)
        talk.step()
        expected = continuation(model, inputs, steps=6)
    return model, talk, expected


@families
def test_a_packed_cache_is_refused_by_the_padded_layout(family):
    model, talk, _ = cache_of(family, family.inputs("batch"), "packed")
    with (
        vtfast.patch(model, FOUR_STAGES, path="padded"),
        pytest.raises(StateError, match=r"in the packed layout.*start a new cache"),
    ):
        talk.step()


@families
def test_a_padded_cache_goes_on_padded_under_a_packed_patch(family):
    """The layout is decided once per cache."""
    model, talk, expected = cache_of(family, family.inputs("batch"), "padded")
    with vtfast.patch(model, FOUR_STAGES, path="packed"):
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@both_layouts
def test_a_refused_forward_leaves_the_cache_as_it_was(family, path):
    model, talk, expected = cache_of(family, family.inputs("batch"), path)
    with vtfast.patch(model, FOUR_STAGES[:2], path=path), pytest.raises(StateError):
        talk.model(
            input_ids=talk.tokens[-1],
            attention_mask=torch.nn.functional.pad(talk.mask, (0, 1), value=1),
            **{CACHE: talk.cache},
        )
    with vtfast.patch(model, FOUR_STAGES, path=path):
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@paths
def test_budgets_per_frame_of_features_without_a_grid_are_refused(path):
    """Features alone do not say how many frames they came from."""
    family = FAMILIES["qwen"]
    model, inputs = family.build(), family.batch([family.named("video")[0]])
    features = BaseModelOutputWithPooling(
        last_hidden_state=torch.zeros(1), pooler_output=(torch.zeros(36, 64),)
    )
    with (
        vtfast.patch(model, [Prune(0, "diversity", 1, per="frame")], path=path),
        pytest.raises(
            InputError,
            match=r'per="frame".*frames of a picture.*without its grid.*pixels',
        ),
        torch.no_grad(),
    ):
        model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_encoder_outputs={"video": features},
        )


@paths
def test_a_prompt_that_ends_in_the_tokens_of_a_picture_is_refused_by_qwen_too(path):
    """Its last token may be dropped, and then nothing is left to predict from."""
    family = FAMILIES["qwen"]
    [sample] = family.samples([3, Picture((1, 8, 12), seed=1)])
    sample.ids.pop()  # the end of the vision part
    model = family.build()
    with (
        vtfast.patch(model, FOUR_STAGES[:2], path=path),
        pytest.raises(InputError, match=r"ends in a picture.*put text after"),
    ):
        continuation(model, family.batch([sample]))


@families
def test_gradients_over_a_packed_cache_are_refused(family):
    """One step was right, and several ended in an error of torch's about memory written twice."""
    model, talk, expected = cache_of(family, family.inputs("batch"), "packed")
    with vtfast.patch(model, FOUR_STAGES, path="packed"):
        with pytest.raises(InputError, match=r"packed.*no backward.*no_grad"), torch.enable_grad():
            talk.model(
                input_ids=talk.tokens[-1],
                attention_mask=torch.nn.functional.pad(talk.mask, (0, 1), value=1),
                **{CACHE: talk.cache},
            )
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)
