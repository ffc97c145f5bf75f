"""Every way to decode gives what it gives on an unpatched model with the dropped tokens hidden."""

import pytest
import torch
from cache_name import CACHE
from masked_model import hidden
from model_oracle import Oracle
from model_runs import FOUR_STAGES, OLD, both_layouts, continuation, gone
from tiny_models import FAMILIES
from tiny_parts import VOCABULARY, text_of
from transformers import DynamicCache

import vtfast
from vtfast import Prune

paths = pytest.mark.parametrize("path", ["padded", "packed"])
NO_SCORES = [Prune(0, "random", 0.5), Prune(3, "diversity", 0.2), Prune(5, "random", 2)]

MODES = [
    pytest.param({"num_beams": 3, "num_return_sequences": 2}, id="beams"),
    pytest.param({"num_beams": 2, "do_sample": True}, id="sampled-beams"),
    pytest.param({"do_sample": True, "top_k": 20, "temperature": 0.8}, id="samples"),
    pytest.param({"do_sample": True, "num_return_sequences": 3}, id="return-sequences"),
    pytest.param({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, id="no-repeats"),
]


def generated(model, inputs, options):
    torch.manual_seed(7)
    defaults = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(**inputs, output_scores=True, **{**defaults, **options})


def check(family, path, inputs, options):
    model, plain = family.build(), family.build(attention="eager")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        got = generated(model, inputs, options)
    copies = len(handle.report.tokens) // len(inputs["input_ids"])  # as the prefill saw them
    lost = gone({"input_ids": inputs["input_ids"].repeat_interleave(copies, 0)}, handle.report.kept)
    with hidden(plain, lost):
        expected = generated(plain, inputs, {**options, "use_cache": False})
    assert torch.equal(got.sequences, expected.sequences)
    if "num_beams" in options:
        torch.testing.assert_close(
            got.sequences_scores, expected.sequences_scores, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("options", MODES)
@both_layouts
def test_decoding_is_that_of_a_model_with_hidden_tokens(family, path, options):
    samples = family.named("batch")
    if OLD and not family.any_size:
        samples = samples[:2]  # the third has two pictures: see the next tests
    check(family, path, family.batch(samples), options)


@both_layouts
def test_beams_of_one_sample_are_those_of_a_model_with_hidden_tokens(family, path):
    """All samples of the batch are equally long, which the packed layout handles apart."""
    check(family, path, family.inputs("single"), {"num_beams": 4, "num_return_sequences": 4})


@pytest.mark.parametrize("options", [MODES[0], MODES[3]])
@paths
def test_decoding_with_clips_is_that_of_a_model_with_hidden_tokens(path, options):
    check(FAMILIES["qwen"], path, FAMILIES["qwen"].inputs("video"), options)


@paths
def test_pictures_mixed_up_under_beams_are_mixed_up_as_on_a_model_with_hidden_tokens(path):
    """One step: later on, without a cache, such beams would change pictures with every step."""
    family = FAMILIES["llava"]
    check(family, path, family.inputs("batch"), {"num_beams": 3, "max_new_tokens": 1})


def test_transformers_before_5_23_mix_up_several_llava_pictures_under_beams():
    """Two beams of one sample see different pictures on an unpatched model."""
    family, seen = FAMILIES["llava"], []
    model, inputs = family.build(), family.batch([family.named("batch")[2]])

    def look(module, args, kwargs):
        seen.append(kwargs["inputs_embeds"])

    text_of(model).register_forward_pre_hook(look, with_kwargs=True)
    continuation(model, inputs, steps=1, num_beams=2)
    assert torch.equal(seen[0][0], seen[0][1]) is not OLD


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@both_layouts
def test_a_callers_cache_is_used_and_changes_nothing(family, path, options):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6, **options)
        empty = [DynamicCache()] * ("packed" in family.layouts)  # recurrent layers want a config
        for cache in (*empty, DynamicCache(config=model.config)):
            got = continuation(model, inputs, steps=6, **{CACHE: cache}, **options)
            assert torch.equal(got, expected)
            assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 5


@both_layouts
def test_a_reset_cache_is_a_fresh_one(family, path):
    """Another batch of another size generates on it what it generates on a new cache."""
    model = family.build()
    cache = DynamicCache(config=model.config)  # which knows of recurrent layers
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        continuation(model, family.inputs("batch"), steps=3, **{CACHE: cache})
        cache.reset()
        assert cache.get_seq_length() == 0
        inputs = family.inputs("single")
        tokens = continuation(model, inputs, **{CACHE: cache})
    oracle = Oracle(family.build(attention="eager"), inputs)
    assert torch.equal(tokens, oracle.greedy(gone(inputs, handle.report.kept), 20))


# -- drafts ----------------------------------------------------------------------------------------

FEW_WORDS = [n for n in range(VOCABULARY) if not 3 <= n < 8]  # else no guess is ever right


def drafted(model, inputs, **options):
    """Tokens, and how many tokens each forward was given."""
    chunks = []

    def look(module, args, kwargs):
        chunks.append((args[0] if args else kwargs["input_ids"]).shape[1])

    hook = model.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        options = {"suppress_tokens": FEW_WORDS, **options}
        return continuation(model, inputs, steps=20, **options), chunks
    finally:
        hook.remove()


@both_layouts
def test_prompt_lookup_decoding_says_what_greedy_decoding_says(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, NO_SCORES, path=path):
        expected, plain_chunks = drafted(model, inputs)
        tokens, chunks = drafted(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(tokens, expected)
    assert len(chunks) < len(plain_chunks)  # some guesses were right
    assert sum(chunks[1:]) > len(plain_chunks)  # and some were cropped off again


@both_layouts
def test_assisted_decoding_says_what_greedy_decoding_says(family, path):
    model, assistant, inputs = family.build(), family.build(), family.inputs("single")
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0
    with vtfast.patch(model, NO_SCORES, path=path):
        expected, plain_chunks = drafted(model, inputs)
        tokens, chunks = drafted(model, inputs, assistant_model=assistant)
    assert torch.equal(tokens, expected)
    assert len(chunks) < len(plain_chunks)
    assert sum(chunks[1:]) > len(plain_chunks)


DRAFTS = [
    pytest.param(lambda family: {"prompt_lookup_num_tokens": 3}, id="prompt-lookup"),
    pytest.param(lambda family: {"assistant_model": family.build()}, id="assistant"),
]


@pytest.mark.parametrize("drafts", DRAFTS)
@both_layouts
def test_a_prefill_that_carries_drafts_scores_from_the_end_of_the_prompt(family, path, drafts):
    """A draft stands behind it, and picks must not follow a guess."""
    model, inputs = family.build(), family.inputs("single")
    inputs["input_ids"][:, -2:] = inputs["input_ids"][:, -5:-3]  # so that a guess is found
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=12)
        assert torch.equal(continuation(model, inputs, steps=12, **drafts(family)), expected)


@both_layouts
def test_text_scores_with_drafts_that_come_after_the_prefill_are_exact(family, path):
    """Where the prefill carries no guess."""
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected, _ = drafted(model, inputs)
        tokens, chunks = drafted(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(tokens, expected)
    assert max(chunks[1:]) > 1
