"""Generation on a patched model: samples of a batch, beams, samples, interleaved runs."""

import pytest
import torch
from conversation import Conversation
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, OLD, both_layouts, continuation, gone, logits_of
from tiny_models import FAMILIES
from tiny_parts import Picture

import vtfast
from vtfast import Prune


@both_layouts
def test_every_sample_of_a_padded_batch_has_the_logits_of_that_sample_alone(family, path):
    samples = family.named("batch")
    inputs = family.batch(samples)
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        together = logits_of(family, model, inputs)
        last = handle.report.kept
        for row, sample in enumerate(samples):
            own = family.batch([sample])
            alone = logits_of(family, model, own)[0]
            padding = inputs["input_ids"].shape[1] - len(sample.ids)
            if sample.pictures:
                for layer, rows in handle.report.kept.items():
                    assert torch.equal(rows[0] + padding, last[layer][row])
            torch.testing.assert_close(together[row, padding:], alone, rtol=0, atol=ATOL)


@both_layouts
def test_every_sample_of_a_padded_batch_says_what_that_sample_says_alone(family, path):
    samples = family.named("batch")
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        together = continuation(model, family.batch(samples))
        for row, sample in enumerate(samples):
            assert torch.equal(continuation(model, family.batch([sample]))[0], together[row])


@both_layouts
def test_both_layouts_keep_the_same_tokens_and_say_the_same(family, path):
    other = {"padded": "packed", "packed": "padded"}[path]
    if other not in family.layouts:
        pytest.skip("one layout only")
    inputs, model, runs = family.inputs("batch"), family.build(), []
    for layout in (path, other):
        with vtfast.patch(model, FOUR_STAGES, path=layout, record=True) as handle:
            runs.append((continuation(model, inputs), handle.report.kept))
    (tokens, kept), (other_tokens, other_kept) = runs
    assert torch.equal(tokens, other_tokens)
    for stage in FOUR_STAGES:
        for a, b in zip(kept[stage.layer], other_kept[stage.layer], strict=True):
            assert torch.equal(a, b)


def several_pictures_under_beams(family):
    """Inputs with several pictures in a sample, where transformers itself can repeat them.

    Before 5.23 it repeats LLaVA's pictures one by one, not sample by sample, so that beams see
    each other's pictures, patched or not.
    """
    return "single" if OLD and not family.any_size else "batch"


@both_layouts
def test_beams_keep_the_same_tokens_for_all_copies_of_a_picture(family, path):
    model, inputs = family.build(), family.inputs(several_pictures_under_beams(family))
    plan = [Prune(0, "random", 0.5), Prune(3, "random", 0.2)]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        continuation(model, inputs)
        kept = handle.report.kept
        continuation(model, inputs, num_beams=2, steps=4)
        copies = handle.report.kept
    for layer, rows in kept.items():
        expected = [row for row in rows for _ in range(2)]
        assert len(copies[layer]) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(copies[layer], expected, strict=True))


@pytest.mark.parametrize("name", ["single", "batch"])
@both_layouts
def test_beam_search_with_a_cache_finds_what_it_finds_without(family, path, name):
    name = several_pictures_under_beams(family) if name == "batch" else name
    model, inputs = family.build(), family.inputs(name)
    plan = [Prune(0, "random", 0.5), Prune(3, "random", 0.2)]
    with vtfast.patch(model, plan, path=path):
        cached = continuation(model, inputs, num_beams=3, steps=8)
        uncached = continuation(model, inputs, num_beams=3, steps=8, use_cache=False)
    assert torch.equal(cached, uncached)


@both_layouts
def test_two_interleaved_generations_do_not_meet(family, path):
    model = family.build()
    first, second = family.inputs("batch"), family.inputs("single", seed=3)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = [continuation(model, inputs, steps=8) for inputs in (first, second)]
        talks = [Conversation(family, model, first), Conversation(family, model, second)]
        for _ in range(7):
            for talk in talks:
                talk.step()
    for talk, tokens in zip(talks, expected, strict=True):
        assert torch.equal(torch.cat(talk.tokens, 1), tokens)


@both_layouts
def test_more_tokens_than_a_buffer_has_room_for_are_the_oracles(family, path):
    """A packed cache grows every 128 tokens."""
    [*samples] = family.samples([2, family.named("single")[0].pictures[0], 3], [3])
    inputs, model = family.batch(samples), family.build()
    plan = [Prune(0, "random", 0.2), Prune(3, "drop", 0)]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        tokens = continuation(model, inputs, steps=140)
    lost = gone(inputs, handle.report.kept)
    oracle = Oracle(family.build(attention="eager"), inputs)
    # One masked forward checks every step: each token is the best after those before it.
    best = oracle.logits(lost, tokens[:, :-1])[:, inputs["input_ids"].shape[1] - 1 :].argmax(-1)
    assert torch.equal(tokens, best)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_prompt_lookup_decoding_says_what_greedy_decoding_says(path):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, [Prune(0, "random", 0.4)], path=path):
        expected = continuation(model, inputs)
        assert torch.equal(continuation(model, inputs, prompt_lookup_num_tokens=3), expected)


@both_layouts
def test_seeded_sampling_is_reproducible(family, path):
    model, inputs, runs = family.build(), family.inputs("batch"), []
    options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2}
    with vtfast.patch(model, FOUR_STAGES, path=path):
        for _ in range(2):
            torch.manual_seed(3)
            runs.append(model.generate(**inputs, **options))
    assert runs[0].shape[0] == 6
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", ["qwen3", "glm4v"])
def test_clips_of_several_frames_are_pruned_in_generate_as_in_a_plain_call(name):
    """GLM's tower is given each frame as a picture."""
    family = FAMILIES[name]
    samples = family.samples(
        [3, Picture((3, 6, 8), seed=5, video=True), 5, Picture((2, 8, 8), seed=6, video=True), 4]
    )
    model, inputs, kept = family.build(), family.batch(samples), []
    plan = [Prune(0, "random", 0.5, per="frame"), Prune(3, "uniform", 0.2, per="frame")]
    with vtfast.patch(model, plan, record=True) as handle, torch.no_grad():
        model(**inputs)
        kept.append(handle.report.kept)
        model.generate(**inputs, max_new_tokens=2)
        kept.append(handle.report.kept)
    for stage in plan:
        assert all(map(torch.equal, *(found[stage.layer] for found in kept)))
