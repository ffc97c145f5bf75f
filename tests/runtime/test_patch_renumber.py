"""positions="renumber": after a stage that drops, positions count from 0 again, layer by layer."""

import pytest
import torch
from cache_name import CACHE, cache_of
from conversation import Conversation
from model_oracle import Oracle
from model_runs import ATOL, both_layouts, continuation, gone, logits_of
from tiny_models import FAMILIES

import vtfast
from vtfast import InputError, Prune, StateError

PLANS = {
    "before-the-language-model": [Prune(0, "diversity", 0.5)],
    "in-the-middle": [Prune(2, "random", 0.2)],
    "by-scores-twice": [Prune(1, "topk", 0.6), Prune(4, "topk", 0.2)],
    "four-stages-to-none": [
        Prune(0, "diversity", 0.7),
        Prune(2, "random", 0.5),
        Prune(3, "topk", 0.3),
        Prune(5, "drop", 0),
    ],
}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def renumbered(model, plan, path, **options):
    return vtfast.patch(model, plan, positions="renumber", path=path, record=True, **options)


@plans
@both_layouts
def test_logits_are_the_oracles(family, path, plan):
    model, inputs = family.build(), family.inputs("batch")
    with renumbered(model, plan, path) as handle:
        logits = logits_of(family, model, inputs)
    oracle = Oracle(family.build(), inputs, renumber=True)
    lost = gone(inputs, handle.report.kept)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], atol=ATOL, rtol=0)


@plans
@both_layouts
def test_tokens_are_the_oracles(family, path, plan):
    model, inputs = family.build(), family.inputs("batch")
    with renumbered(model, plan, path) as handle:
        tokens = continuation(model, inputs, steps=12)
    lost = gone(inputs, handle.report.kept)
    oracle = Oracle(family.build(), inputs, renumber=True)
    assert torch.equal(tokens, oracle.greedy(lost, 12))


@both_layouts
def test_renumbering_changes_the_logits(family, path):
    model, inputs = family.build(), family.inputs("single")
    plan = [Prune(1, "random", 0.5)]
    with vtfast.patch(model, plan, path=path):
        kept = logits_of(family, model, inputs)[:, -1]
    with renumbered(model, plan, path):
        counted = logits_of(family, model, inputs)[:, -1]
    assert (kept - counted).abs().max() > 100 * ATOL


@both_layouts
def test_a_sample_that_loses_nothing_keeps_its_positions(family, path):
    """At most 30 tokens an image: one of Qwen's two pictures is smaller than that."""
    inputs, model = family.inputs("batch"), family.build()
    plan = [Prune(1, "random", 24)]
    with renumbered(model, plan, path) as handle:
        together = continuation(model, inputs, steps=8)
        counts = [row[1] for row in handle.report.tokens]
        alone = [
            continuation(model, family.batch([sample]), steps=8) for sample in family.named("batch")
        ]
    assert counts[1] == 24
    assert torch.equal(together, torch.cat(alone))
    oracle = Oracle(family.build(), inputs, renumber=True)
    with renumbered(model, plan, path) as handle:
        logits_of(family, model, inputs)
    assert torch.equal(together, oracle.greedy(gone(inputs, handle.report.kept), 8))


@both_layouts
def test_nothing_dropped_is_bit_identical(family, path):
    model, inputs = family.build(), family.inputs("batch")
    expected = logits_of(family, model, inputs)
    with renumbered(model, [Prune(2, "random", 1.0)], path):
        assert torch.equal(logits_of(family, model, inputs), expected)


@both_layouts
def test_beams_take_their_positions_along(family, path):
    model, inputs = family.build(), family.inputs("single")
    plan, beams = PLANS["four-stages-to-none"], {"num_beams": 3, "steps": 8}
    with renumbered(model, plan[:2], path):
        cached = continuation(model, inputs, **beams)
        assert torch.equal(cached, continuation(model, inputs, use_cache=False, **beams))


@both_layouts
def test_a_rearranged_cache_takes_its_positions_along(family, path):
    """Only the second and third samples have pictures, so only they were renumbered."""
    model, inputs = family.build(), family.inputs("batch")
    with renumbered(model, PLANS["in-the-middle"], path):
        expected = continuation(model, inputs, steps=6)[[2, 0]]
        talk = Conversation(family, model, inputs)
        talk.step()
        talk.cache.batch_select_indices(torch.tensor([2, 0]))
        talk.keep([2, 0])
        for _ in range(4):
            talk.step()
    assert torch.equal(torch.cat(talk.tokens, 1), expected)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_static_cache_gives_the_same_tokens(family):
    model, inputs = family.build(), family.inputs("batch")
    with renumbered(model, PLANS["four-stages-to-none"], "padded"):
        expected = continuation(model, inputs, steps=8)
        static = continuation(model, inputs, steps=8, cache_implementation="static")
    assert torch.equal(static, expected)


# -- what it cannot do -----------------------------------------------------------------------------


@both_layouts
def test_a_picture_after_text_on_one_cache_is_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    positions = Oracle(model, inputs).position_ids(0, inputs["input_ids"].shape[1]) + 3
    with torch.no_grad():
        cache = cache_of(model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True))
    mask = torch.ones(1, 3 + inputs["input_ids"].shape[1], dtype=torch.long)
    later = {**inputs, "attention_mask": mask, "position_ids": positions}
    with (
        renumbered(model, PLANS["in-the-middle"], path),
        pytest.raises(InputError, match="first turn"),
        torch.no_grad(),
    ):
        model(**later, **{CACHE: cache})
    assert cache.get_seq_length() == 3


@both_layouts
def test_a_cache_with_other_positions_is_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    with renumbered(model, PLANS["in-the-middle"], path):
        talk = Conversation(family, model, inputs)
    with (
        vtfast.patch(model, PLANS["in-the-middle"], path=path),
        pytest.raises(StateError, match="positions='renumber'"),
    ):
        talk.step()


@pytest.mark.parametrize("bad", ["original", None, True])
def test_an_unknown_value_of_positions_is_refused(bad):
    model = FAMILIES["llava"].build()
    with pytest.raises(InputError, match="'keep', 'renumber'"):
        vtfast.patch(model, positions=bad)
    assert not vtfast.is_patched(model)
