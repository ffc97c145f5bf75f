"""A pruned model computes what the masked full-length oracle computes, and keeps what it should."""

import pytest
import torch
from cache_name import CACHE, cache_of
from model_oracle import Oracle
from model_runs import (
    ATOL,
    BY_TEXT_AND_TOWER,
    FOUR_STAGES,
    both_layouts,
    continuation,
    gone,
    logits_of,
)
from tiny_models import FAMILIES

import vtfast
from vtfast import Prune

PLANS = [
    pytest.param([Prune(0, "diversity", 0.4)], id="before-the-llm"),
    pytest.param([Prune(2, "topk", 0.3)], id="text-scores-at-2"),
    pytest.param([Prune(3, "random", 0.25)], id="random-mid-depth"),
    pytest.param(FOUR_STAGES, id="four-stages"),
    pytest.param(BY_TEXT_AND_TOWER, id="by-text-and-tower"),
    pytest.param([Prune(3, "drop", 0)], id="drop-all-mid-depth"),
    pytest.param([Prune(0, "drop", 0)], id="drop-all-before-the-llm"),
]
plans = pytest.mark.parametrize("plan", PLANS)


def check_logits(family, path, plan, inputs, attention="sdpa"):
    model = family.build(attention=attention)
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits = logits_of(family, model, inputs)
    lost = gone(inputs, handle.report.kept)
    oracle = Oracle(family.build(attention="eager"), inputs)
    alive = oracle.survivors(lost)
    assert set(lost) == {stage.layer for stage in plan}
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)


def check_tokens(family, path, plan, inputs, **options):
    model = family.build()
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        tokens = continuation(model, inputs, **options)
    oracle = Oracle(family.build(attention="eager"), inputs)
    assert torch.equal(tokens, oracle.greedy(gone(inputs, handle.report.kept), 20))


@plans
@both_layouts
def test_logits_of_surviving_tokens_are_the_oracles(family, path, plan):
    check_logits(family, path, plan, family.inputs("batch"))


@plans
@both_layouts
def test_twenty_greedy_tokens_are_the_oracles(family, path, plan):
    check_tokens(family, path, plan, family.inputs("batch"))


@both_layouts
def test_a_single_unpadded_sample_has_the_oracles_logits(family, path):
    check_logits(family, path, FOUR_STAGES, family.inputs("single"))


@both_layouts
def test_a_single_unpadded_sample_has_the_oracles_tokens(family, path):
    check_tokens(family, path, FOUR_STAGES, family.inputs("single"))


@both_layouts
def test_generating_without_a_cache_gives_the_oracles_tokens(family, path):
    plan = [Prune(0, "diversity", 0.5), Prune(3, "random", 0.2)]
    check_tokens(family, path, plan, family.inputs("batch"), use_cache=False)


@both_layouts
def test_logits_are_zero_where_a_token_was_dropped(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits = logits_of(family, model, inputs)
    oracle = Oracle(family.build(attention="eager"), inputs)
    alive = oracle.survivors(gone(inputs, handle.report.kept))
    assert logits.shape[:2] == inputs["input_ids"].shape
    dropped = logits[~alive & oracle.valid]
    assert torch.equal(dropped, torch.zeros_like(dropped))
    assert logits[alive].abs().amax(-1).min() > 0


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_image_and_video_samples_have_the_oracles_logits(path):
    family = FAMILIES["qwen"]
    check_logits(family, path, FOUR_STAGES, family.inputs("video"))


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_image_and_video_samples_have_the_oracles_tokens(path):
    family = FAMILIES["qwen"]
    check_tokens(family, path, FOUR_STAGES, family.inputs("video"))


@both_layouts
def test_a_later_text_chunk_on_a_pruned_cache_has_the_oracles_logits(family, path):
    inputs = family.inputs("batch")
    new = torch.randint(3, 89, (3, 5), generator=torch.Generator().manual_seed(5))
    oracle = Oracle(family.build(attention="eager"), inputs)
    length = inputs["input_ids"].shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)

    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        cache = cache_of(model(**inputs, position_ids=oracle.position_ids(0, length)))
        lost = gone(inputs, handle.report.kept)
        logits = model(
            input_ids=new,
            attention_mask=mask,
            position_ids=oracle.position_ids(length, length + 5),
            **{CACHE: cache},
        ).logits
    torch.testing.assert_close(logits, oracle.logits(lost, new)[:, -5:], rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_padded_layout_works_with_another_attention(family):
    check_logits(family, "padded", FOUR_STAGES, family.inputs("batch"), attention="eager")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_packed_layout_refuses_another_attention(family):
    with pytest.raises(vtfast.InputError, match=r"packed.*eager.*padded"):
        vtfast.patch(family.build(attention="eager"), FOUR_STAGES, path="packed")
