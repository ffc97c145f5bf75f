"""What a pruned generation remembers is on its cache, and the cache does what caches do."""

import copy

import pytest
import torch
from cache_name import CACHE, cache_of
from conversation import Conversation
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, gone
from tiny_models import FAMILIES
from tiny_parts import Picture

import vtfast
from vtfast import Prune


@both_layouts
def test_a_copied_cache_goes_on_by_itself(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        talk = Conversation(family, model, inputs)
        talk.step()
        fork = copy.copy(talk)
        fork.cache, fork.tokens = copy.deepcopy(talk.cache), list(talk.tokens)
        for _ in range(4):
            talk.step()
            fork.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)
    assert torch.equal(torch.cat(fork.tokens, 1), expected)


REARRANGED = [
    pytest.param(lambda c: c.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1], id="reordered"),
    pytest.param(lambda c: c.batch_select_indices(torch.tensor([2, 1])), [2, 1], id="selected"),
    pytest.param(lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2], id="repeated"),
]


@pytest.mark.parametrize(("rearrange", "order"), REARRANGED)
@both_layouts
def test_a_rearranged_cache_goes_on_as_the_samples_it_holds(family, path, rearrange, order):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)[order]
        talk = Conversation(family, model, inputs)
        talk.step()
        rearrange(talk.cache)
        talk.keep(order)
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@both_layouts
def test_a_cropped_cache_says_the_same_again(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        talk = Conversation(family, model, inputs)
        for _ in range(4):
            talk.step()
        talk.cache.crop(-3)
        talk.forget(3)
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@both_layouts
def test_decoding_without_positions_goes_on_from_the_original_length(family, path):
    """The model asks the cache how many tokens there were, dropped ones included."""
    inputs = family.inputs("single")
    inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = continuation(model, inputs, steps=6)
        out, tokens = model(**inputs), []
        for _ in range(6):
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=tokens[-1], **{CACHE: cache_of(out)})
    assert torch.equal(torch.cat(tokens, 1), expected)


@both_layouts
def test_a_cache_counts_the_tokens_it_has_seen(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        talk = Conversation(family, model, inputs)
        talk.step()
    assert talk.cache.get_seq_length() == inputs["input_ids"].shape[1] + 1


@both_layouts
def test_a_cache_counts_as_before_when_samples_leave_it(family, path):
    """Also when the longest one leaves, whose length a packed layer reports."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        talk = Conversation(family, model, inputs)
    for sample in range(len(inputs["input_ids"])):
        cache = copy.deepcopy(talk.cache)
        cache.batch_select_indices(torch.tensor([sample]))
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@both_layouts
def test_a_second_turn_of_text_on_the_same_cache_is_the_oracles(family, path):
    first, text = family.inputs("single"), torch.tensor([[7, 8, 9, 10]])
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
        turn = model.generate(**first, **options)
        ids = torch.cat([turn.sequences, text], 1)
        tokens = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **{CACHE: cache_of(turn)},
            max_new_tokens=8,
            do_sample=False,
        )[:, ids.shape[1] :]
    prompt = first["input_ids"].shape[1]
    said = torch.cat([ids[:, prompt:], tokens], 1)
    oracle = Oracle(family.build(attention="eager"), first)
    logits = oracle.logits(gone(first, handle.report.kept), said[:, :-1])
    assert torch.equal(tokens, logits[:, -8:].argmax(-1))


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_a_second_turn_with_a_new_picture_is_the_oracles(path):
    family = FAMILIES["llava"]
    first, second = family.samples([4, Picture(seed=1), 7], [3, Picture(seed=2), 5])
    plan = [Prune(0, "diversity", 0.5), Prune(3, "random", 0.2)]
    inputs, model = family.batch([first]), family.build()
    with vtfast.patch(model, plan, path=path, record=True) as handle, torch.no_grad():
        cache = cache_of(model(**inputs))
        kept = {layer: rows[0] for layer, rows in handle.report.kept.items()}
        logits = model(**unmasked(family.batch([second])), **{CACHE: cache}).logits
        start = len(first.ids)
        kept = {
            layer: [torch.cat([rows, handle.report.kept[layer][0] + start])]
            for layer, rows in kept.items()
        }
    both = copy.copy(first)
    both.ids, both.pictures = first.ids + second.ids, first.pictures + second.pictures
    together = family.batch([both])
    lost = gone(together, kept)
    oracle = Oracle(family.build(attention="eager"), together)
    alive = oracle.survivors(lost)[0, start:]
    expected = oracle.logits(lost)[0, start:]
    torch.testing.assert_close(logits[0, alive], expected[alive], rtol=0, atol=ATOL)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_pictures_after_a_padded_turn_of_text_are_the_oracles(path):
    """Until the pictures come nothing is dropped and the cache is transformers' own."""
    family = FAMILIES["llava"]
    turns = family.samples([9], [4]), family.samples([3, Picture(seed=2), 5], [2, Picture(seed=3)])
    first, second = map(family.batch, turns)
    together = {
        name: torch.cat([first[name], second[name]], 1) for name in ("input_ids", "attention_mask")
    }
    together["pixel_values"] = second["pixel_values"]
    start = first["input_ids"].shape[1]
    positions = (together["attention_mask"].cumsum(1) - 1).clamp(min=0)
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        cache = cache_of(model(**first, position_ids=positions[:, :start]))
        logits = model(
            input_ids=second["input_ids"],
            pixel_values=second["pixel_values"],
            attention_mask=together["attention_mask"],
            position_ids=positions[:, start:],
            **{CACHE: cache},
        ).logits
    kept = {layer: [rows + start for rows in stage] for layer, stage in handle.report.kept.items()}
    lost = gone(together, kept)
    oracle = Oracle(family.build(attention="eager"), together)
    alive = oracle.survivors(lost)[:, start:]
    expected = oracle.logits(lost)[:, start:]
    torch.testing.assert_close(logits[alive], expected[alive], rtol=0, atol=ATOL)


def unmasked(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


@both_layouts
def test_only_the_tokens_kept_are_cached(family, path):
    """Every layer of an unpadded sample holds exactly the tokens that the report says it saw."""
    inputs, model = family.inputs("single"), family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path) as handle:
        talk = Conversation(family, model, inputs)
        talk.step()
    [tokens] = handle.report.tokens
    [sample] = family.named("single")
    text = len(sample.ids) - family.tokens_of(sample.pictures[0])
    held = {i: x for i, x in enumerate(talk.cache.layers) if hasattr(x, "keys")}  # not recurrent
    lengths = {i: layer.get_seq_length() for i, layer in held.items()}
    assert lengths == {i: tokens[i] + text + 1 for i in held}
