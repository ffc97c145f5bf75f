"""Several turns on one cache are what the oracle makes of the whole conversation."""

import contextlib

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts
from tiny_models import FAMILIES
from tiny_parts import IMAGE, VIDEO, Picture
from transformers import DynamicCache
from turns import Turns

import vtfast
from vtfast import StateError

paths = pytest.mark.parametrize("path", ["padded", "packed"])


def one(family):
    return Picture((1, 8, 12) if family.any_size else (1, 12, 12), seed=1)


def other(family):
    return Picture((1, 12, 8) if family.any_size else (1, 12, 12), seed=2)


@contextlib.contextmanager
def talking(family, path, **options):
    """Turns with a patched model."""
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        yield Turns(family, model, handle, **options)


def pruned_chunks(turns):
    """Where the chunks start whose pictures lost tokens, by the gaps between pictures."""
    visual = ((turns.ids == IMAGE) | (turns.ids == VIDEO)).any(0).nonzero()[:, 0]
    lost = torch.stack(list(turns.gone.values())).any(0).any(0)
    pictures = visual.tensor_split((visual.diff() > 3).nonzero()[:, 0] + 1)  # not rows or tiles
    return sum(bool(lost[columns].any()) for columns in pictures)


@both_layouts
def test_a_picture_after_a_turn_of_text(family, path):
    with talking(family, path) as turns:
        turns.say([5])
        turns.step(2)
        turns.say([3, one(family), 4])
        turns.step(4)
        turns.check()


@both_layouts
def test_pictures_after_a_padded_turn_of_text(family, path):
    """Until the pictures come nothing is dropped, and the cache holds padding."""
    with talking(family, path, rows=3) as turns:
        turns.say([9], [2], [5])
        turns.step(2)
        turns.say([3, one(family), 4], [2, other(family), 2], [6])
        turns.step(3)
        turns.check()


@both_layouts
def test_a_second_picture_is_pruned_too(family, path):
    with talking(family, path) as turns:
        turns.say([4, one(family), 7])
        turns.step(3)
        turns.say([3, other(family), 5])
        turns.step(4)
        turns.check()
        assert pruned_chunks(turns) == 2


@both_layouts
def test_without_an_attention_mask(family, path):
    with talking(family, path, masked=False) as turns:
        turns.say([4, one(family), 7])
        turns.step(3)
        turns.say([6])
        turns.step(1)
        turns.say([3, other(family), 5])
        turns.step(3)
        turns.check()
        assert pruned_chunks(turns) == 2


@both_layouts
def test_text_after_a_picture(family, path):
    with talking(family, path) as turns:
        turns.say([4, one(family), 7])
        turns.step(3)
        turns.say([6])
        turns.step(4)
        turns.check()


@both_layouts
def test_five_tokens_at_once_between_single_ones(family, path):
    with talking(family, path) as turns:
        turns.say([4, one(family), 7])
        turns.step(2)
        for _ in range(2):
            turns.feed(torch.tensor([[7, 8, 9, 10, 11]]))
            turns.step(2)
        turns.check()


@both_layouts
def test_samples_bring_their_pictures_in_different_turns(family, path):
    first, second = one(family), other(family)
    with talking(family, path, rows=3) as turns:
        turns.say([4, first, 7], [3], [2, second, 3, first, 4])
        turns.step(3)
        turns.say([2], [3, second, 1, second, 5], [8])
        turns.step(2)
        turns.say([5, second, 2], [6], [1, first, 3])
        turns.step(4)
        turns.check()


@both_layouts
def test_right_padded_turns(family, path):
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3], side="right")
        turns.step(3)
        turns.say([2], [3, other(family), 5], side="right")
        turns.step(3)
        turns.check()


@both_layouts
def test_one_real_token_a_sample_in_a_padded_chunk_is_no_decoding_step(family, path):
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3])
        turns.step(1)
        turns.feed(torch.tensor([[0, 5], [0, 6]]), mask=torch.tensor([[0, 1], [0, 1]]))
        turns.step(2)
        turns.check()


@both_layouts
def test_a_sample_may_skip_a_turn(family, path):
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3])
        turns.step(1)
        turns.feed(torch.tensor([[5, 6, 7], [0, 0, 0]]), mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
        turns.feed(torch.tensor([[8], [9]]))
        turns.check()


@paths
def test_a_clip_after_an_image(path):
    family = FAMILIES["qwen"]
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [2, Picture((2, 8, 6), seed=7, video=True), 3])
        turns.step(2)
        turns.say([3, Picture((3, 6, 8), seed=5, video=True), 5], [2, other(family), 2])
        turns.step(3)
        turns.check()


@both_layouts
def test_a_prompt_cached_before_patching_serves_several_pictures(family, path):
    """The system prompt is run once; every question starts on a copy of its cache."""
    model = family.build()
    turns = Turns(family, model)
    turns.say([9])
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        turns.handle = handle
        for picture in (one(family), other(family)):
            question = turns.fork()
            question.say([3, picture, 5])
            question.step(3)
            question.check()


MADE = [
    pytest.param(lambda model: DynamicCache(), id="empty"),
    pytest.param(lambda model: DynamicCache(config=model.config), id="with-its-layers"),
]


@pytest.mark.parametrize("make", MADE)
@both_layouts
def test_a_cache_made_by_the_caller(family, path, make):
    with talking(family, path, rows=2) as turns:
        cache = turns.cache = make(turns.model)
        turns.say([4, one(family), 7], [3])
        turns.step(3)
        turns.check()
        assert turns.cache is cache


ROWS = [
    pytest.param("reorder_cache", [2, 0, 1], id="reordered"),
    pytest.param("reorder_cache", [1, 1, 0], id="beams-of-one-parent"),
    pytest.param("batch_select_indices", [2, 1], id="selected"),
    pytest.param("batch_select_indices", [False, True, True], id="selected-by-a-mask"),
    pytest.param("batch_repeat_interleave", 2, id="repeated"),
]


@pytest.mark.parametrize(("how", "rows"), ROWS)
@both_layouts
def test_rearranged_samples_go_on_with_their_own_tokens(family, path, how, rows):
    """Samples of three lengths, moved in the middle of decoding and again after a new picture."""
    with talking(family, path, rows=3) as turns:
        turns.say([4, one(family), 7], [3], [2, other(family), 3, one(family), 4])
        turns.step(2)
        turns.rearrange(rows, how)
        turns.step(2)
        turns.say(*[[2, other(family), 3]] * len(turns.ids))
        turns.rearrange(list(reversed(range(len(turns.ids)))))
        turns.step(2)
        turns.check()


@both_layouts
def test_what_is_cropped_may_be_said_differently(family, path):
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3])
        turns.step(4)
        turns.crop(3)
        turns.feed(torch.tensor([[7, 8], [9, 10]]))
        turns.crop(1)
        turns.say([2, other(family), 3], [4])
        turns.step(2)
        turns.crop(4)  # a token of the chunk with the picture among them
        turns.step(3)
        turns.check()


@both_layouts
def test_buffers_grow_between_turns_and_rearranged_samples(family, path):
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3])
        turns.step(100)
        turns.rearrange([1, 0], "reorder_cache")
        turns.step(40)
        turns.say([3, other(family), 3], [3])
        turns.step(5)
        turns.say([150], [4])  # more than any spare room
        turns.step(2)
        turns.check()


# -- by generate -----------------------------------------------------------------------------------


@both_layouts
def test_generate_answers_about_one_picture_and_then_about_another(family, path):
    with talking(family, path) as turns:
        turns.generate([4, one(family), 7])
        turns.generate([6])
        turns.generate([3, other(family), 5])
        turns.generate([2])
        turns.check()
        assert pruned_chunks(turns) == 2


@both_layouts
def test_generate_answers_about_a_picture_after_a_turn_of_text(family, path):
    with talking(family, path) as turns:
        turns.generate([6])
        turns.generate([3, one(family), 5])
        turns.check()


@both_layouts
def test_generate_answers_samples_that_bring_pictures_in_different_turns(family, path):
    with talking(family, path, rows=2) as turns:
        turns.generate([4, one(family), 7], [3])
        turns.generate([2], [3, other(family), 1, one(family), 5])
        turns.generate([3, other(family), 2], [6])
        turns.check()


@paths
def test_generate_answers_about_a_clip_after_an_image(path):
    with talking(FAMILIES["qwen"], path) as turns:
        turns.generate([4, one(FAMILIES["qwen"]), 7])
        turns.generate([3, Picture((3, 6, 8), seed=5, video=True), 5])
        turns.check()


# -- what was wrong once ---------------------------------------------------------------------------


@both_layouts
def test_a_cache_made_in_inference_mode_goes_on_outside_of_it(family, path):
    """The packed layout wrote into buffers that inference mode had made, which torch refuses."""
    with talking(family, path, rows=2) as turns:
        with torch.inference_mode():
            turns.say([4, one(family), 7], [3])
            turns.step(2)
        turns.step(2)
        turns.say([3], [2, other(family), 2])
        with torch.inference_mode():
            turns.step(1)
        turns.step(1)
        turns.check()


@both_layouts
def test_cropping_over_padding_is_refused(family, path):
    """A pruned layer holds no padding, so a real token was lost in its place."""
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3], side="right")
        turns.step(3)
        turns.crop(3)
        with pytest.raises(StateError, match="padding"):
            turns.crop(1)
        turns.step(2)
        turns.check()


@both_layouts
def test_a_hidden_token_in_a_decoding_step_stays_hidden(family, path):
    """The packed layout cached it as a real one."""
    with talking(family, path, rows=2) as turns:
        turns.say([4, one(family), 7], [3])
        turns.step(1)
        turns.feed(torch.tensor([[5], [0]]), mask=torch.tensor([[1], [0]]))
        turns.feed(torch.tensor([[6], [7]]))
        turns.check()
