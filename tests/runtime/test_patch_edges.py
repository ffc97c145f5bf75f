"""Edge cases that once failed; each docstring says how.

They are things a caller may do around a generation (undo the patch, crop, repeat, hide a picture)
that must give the right result or be refused, and never give wrong numbers silently.
"""

import pytest
import torch
from cache_name import CACHE, cache_of
from conversation import Conversation
from model_oracle import Oracle
from model_runs import (
    FOUR_STAGES,
    both_layouts,
    continuation,
    fed,
    first_rows,
    logits_of,
    probing,
)
from tiny_models import FAMILIES
from tiny_parts import IMAGE, LAYERS, Picture, text_of
from transformers import Olmo2Config

import vtfast
from vtfast import Prune
from vtfast.errors import InputError, StateError, UnsupportedModelError

HALF = [Prune(2, "random", 0.5)]
paths = pytest.mark.parametrize("path", ["padded", "packed"])


@both_layouts
def test_an_old_handle_leaves_a_later_patch_running(family, path):
    """Its second removal restored the attention implementation under the new patch."""
    model, inputs = family.build(), family.inputs("single")
    old = vtfast.patch(model, HALF, path=path)
    old.remove()
    with vtfast.patch(model, HALF, path=path):
        expected = logits_of(family, model, inputs)
        old.remove()
        assert torch.equal(logits_of(family, model, inputs), expected)


@both_layouts
def test_a_hidden_visual_token_is_refused(family, path):
    """It was not counted as a token, so its neighbour was pruned in its place."""
    model, inputs = family.build(), family.inputs("batch")
    column = (inputs["input_ids"][1] == IMAGE).nonzero()[0]
    inputs["attention_mask"][1, column] = 0
    with (
        vtfast.patch(model, HALF, path=path),
        pytest.raises(InputError, match="hides 1 of a picture"),
    ):
        logits_of(family, model, inputs)


@paths
def test_budgets_per_frame_are_the_same_in_generate(path):
    """Pre-encoded features lost the number of frames unless the plan needed image hashes."""
    family, plan = FAMILIES["qwen"], [Prune(0, "diversity", 1, per="frame")]
    model, inputs = family.build(), family.batch([family.named("video")[0]])
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits_of(family, model, inputs)
        forward = handle.report.kept[0]
        continuation(model, inputs, steps=1)
        assert len(forward[0]) == 3
        assert torch.equal(handle.report.kept[0][0], forward[0])


def test_random_picks_per_frame_do_not_depend_on_the_batch():
    """A clip in the batch changed how the image hashes of all others were mixed."""
    family, plan = FAMILIES["qwen"], [Prune(0, "random", 0.5, per="frame")]
    clip, _ = family.named("video")
    model = family.build()
    with vtfast.patch(model, plan, record=True) as handle:
        picture = family.samples([3, Picture((1, 8, 8), seed=6), 4])[0]
        logits_of(family, model, family.batch([picture]))
        alone = handle.report.kept[0][0]
        inputs = family.batch([clip, picture])
        logits_of(family, model, inputs)
    padding = inputs["input_ids"].shape[1] - len(picture.ids)
    assert torch.equal(handle.report.kept[0][1], alone + padding)


@both_layouts
def test_a_packed_cache_goes_on_only_under_its_patch(family, path):
    """Without the patch new tokens silently overwrote the last ones."""
    model = family.build()
    with vtfast.patch(model, HALF, path=path):
        talk = Conversation(family, model, family.inputs("batch"))
        talk.step()
    if path == "packed":
        with pytest.raises(StateError, match="start a new cache"):
            talk.step()
    with (
        vtfast.patch(model, [Prune(3, "random", 0.5)], path=path),
        pytest.raises(StateError, match="pruned by the plan"),
    ):
        talk.step()


@both_layouts
def test_cropping_into_a_picture_is_refused(family, path):
    """Layers hold different numbers of its tokens, so other tokens were lost."""
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, HALF, path=path):
        talk = Conversation(family, model, inputs)
        talk.step()
        after = inputs["input_ids"].shape[1] - int((inputs["input_ids"] == IMAGE)[0].nonzero()[-1])
        talk.cache.crop(-after)  # the step, and the text after the picture
        assert talk.cache.get_seq_length() == inputs["input_ids"].shape[1] + 1 - after
        with pytest.raises(StateError, match="ends 0 tokens before"):
            talk.cache.crop(-1)


@paths
def test_generating_from_a_prompt_that_ends_in_a_picture_is_refused(path):
    """The last token was dropped, and the next one chosen from zeros."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.batch(family.samples([3, Picture(seed=1)]))
    with vtfast.patch(model, HALF, path=path), pytest.raises(InputError, match="ends in a picture"):
        continuation(model, inputs)
    with vtfast.patch(model, [Prune(2, "random", 1.0)], path=path):
        continuation(model, inputs, steps=1)


@paths
@pytest.mark.parametrize("selecting", [lambda c: c.batch_repeat_interleave(2), "mask"])
def test_pictures_are_counted_on_after_samples_of_a_cache_moved(path, selecting):
    """The count stayed with the old samples: a second picture then failed."""
    family = FAMILIES["llava"]
    first, second = family.samples([4, Picture(seed=1), 7], [3, Picture(seed=2), 5])
    model = family.build()
    with vtfast.patch(model, HALF, path=path), torch.no_grad():
        cache = cache_of(model(**without_mask(family.batch([first] * 2))))
        if selecting == "mask":
            cache.batch_select_indices(torch.tensor([False, True]))
            rows = 1
        else:
            selecting(cache)
            rows = 4
        model(**without_mask(family.batch([second] * rows)), **{CACHE: cache})
    assert cache.vtfast.images.tolist() == [2] * rows


def test_pictures_that_lose_nothing_are_counted_too():
    """Without pixels the second picture then got the number of the first."""
    family, keys = FAMILIES["llava"], []
    first, second = (
        family.batch([s]) for s in family.samples([4, Picture(seed=1), 7], [2, Picture(seed=2), 5])
    )
    model = family.build()

    def look(context):
        keys.append(context.image_hash.tolist())
        return first_rows(context)

    def turn(keep, inputs, **more):
        with torch.no_grad():
            features = model.model.get_image_features(inputs["pixel_values"])
        with vtfast.patch(model, [Prune(2, "test-probe", keep)]), torch.no_grad():
            given = {k: v for k, v in without_mask(inputs).items() if k != "pixel_values"}
            return model(**given, **more, mm_encoder_outputs={"image": features})

    with probing(look):
        cache = cache_of(turn(36, first))
        cache.vtfast.plan = vtfast.Plan([Prune(2, "test-probe", 0.5)])  # as if it were one plan
        turn(0.5, second, **{CACHE: cache})
    assert keys == [[1]]


def test_a_picture_of_half_precision_has_one_hash(monkeypatch):
    """In fp16 the tower saw rounded pixels, and a plain forward hashed the unrounded ones."""
    family = FAMILIES["qwen"]
    model, inputs = family.build(dtype=torch.float16), family.inputs("single")
    seen = []

    def look(context):
        seen.append(context.image_hash.tolist())
        return first_rows(context)

    with probing(look), vtfast.patch(model, [Prune(2, "test-probe", 0.5)]):
        logits_of(family, model, inputs)
        continuation(model, inputs, steps=1)
    assert seen[0] == seen[1]


def test_scores_of_an_unknown_text_model_are_refused():
    """OLMo 2 norms queries and keys of all heads together, which our scores would ignore."""
    model = FAMILIES["llava"].build()
    model.config.text_config = Olmo2Config(num_hidden_layers=6)
    with pytest.raises(UnsupportedModelError, match="olmo2"):
        vtfast.patch(model, [Prune(2, "topk", 0.5)])
    vtfast.patch(model, HALF).remove()


@both_layouts
def test_the_text_model_can_be_called_by_itself(family, path):
    """The hook required embeddings, although the model takes token ids too."""
    model, ids = family.build(), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = text_of(model)(input_ids=ids).last_hidden_state
        with vtfast.patch(model, HALF, path=path):
            hidden = text_of(model)(input_ids=ids).last_hidden_state
    assert torch.equal(hidden, expected)


@both_layouts
def test_a_reset_cache_starts_anew(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        talk = Conversation(family, model, inputs)
        talk.step()
        cache, tokens = talk.cache, talk.tokens
        cache.reset()
        with torch.no_grad():
            positions = Oracle(family.build(), inputs).position_ids(0, inputs["input_ids"].shape[1])
            out = model(**inputs, position_ids=positions, **{CACHE: cache})
    assert torch.equal(out.logits[:, -1:].argmax(-1), tokens[0])
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def without_mask(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


@paths
def test_a_method_that_takes_tokens_of_another_picture_is_refused(path):
    """The counts of both pictures were then wrong, without an error."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")

    def from_the_first_only(context):
        return torch.arange(sum(context.keep))

    plan = [Prune(2, "test-probe", 0.25)]
    with (
        probing(from_the_first_only),
        vtfast.patch(model, plan, path=path),
        pytest.raises(InputError, match="distinct rows of segment"),
    ):
        logits_of(family, model, inputs)


def test_attention_dropout_is_not_dropped_silently():
    """The packed layout has none, and ran without it in training mode."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    model.config.text_config.attention_dropout = 0.1
    with vtfast.patch(model, HALF, path="packed"), pytest.raises(InputError, match="dropout"):
        logits_of(family, model.train(), inputs)


@both_layouts
def test_a_step_with_the_positions_of_the_whole_sequence_is_refused_and_changes_nothing(
    family, path
):
    """transformers hands those on as they are; Qwen makes them by itself from a mask alone."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, HALF, path=path), torch.no_grad():
        cache = cache_of(model(**inputs, use_cache=True))
        held = [cache.get_seq_length(i) for i in range(LAYERS)]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with pytest.raises(InputError, match="position_ids of just the tokens in this call"):
            model(
                input_ids=inputs["input_ids"][:, -1:],
                attention_mask=mask,
                position_ids=positions,
                **{CACHE: cache},
            )
        assert [cache.get_seq_length(i) for i in range(LAYERS)] == held


@pytest.mark.parametrize("first", [True, False], ids=["then-without", "then-under-autocast"])
@pytest.mark.parametrize("path", ["padded", "packed"])
def test_a_cache_goes_on_where_autocast_has_come_or_gone(path, first):
    """It is of the dtype of its first tokens; transformers' own takes both."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    mask, steps = inputs["attention_mask"], []
    with vtfast.patch(model, HALF, path=path), torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            cache = cache_of(model(**fed(family, inputs), use_cache=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=not first):
            for _ in range(2):
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                given = {"input_ids": inputs["input_ids"][:, -1:], "attention_mask": mask}
                given["position_ids"] = mask.sum(1, keepdim=True) - 1
                steps.append(model(**given, **{CACHE: cache}).logits)
    assert all(logits.isfinite().all() for logits in steps)
