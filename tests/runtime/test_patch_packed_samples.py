"""A row that holds several samples, told by `position_ids` that start again (padding-free batches).

Each sample is pruned by itself and sees no other: it gets what it gets alone.
"""

import pytest
import torch
from model_runs import ATOL, FOUR_STAGES, both_layouts, first_rows, probing
from packed_samples import alone, in_one_row, in_rows, toy_scenes
from tiny_models import FAMILIES
from tiny_parts import Picture, text_of
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import vtfast
from vtfast import InputError, Prune

PLANS = {
    "four-stages": FOUR_STAGES,
    "late-scores": [Prune(2, "topk", 0.5)],
    "dart": [Prune(1, "dart", 0.4)],
    "uniform-then-none": [Prune(0, "uniform", 0.5), Prune(4, "drop", 0)],
    "own-method": [Prune(3, "test-probe", 0.3)],
}


def packed(family, *, text_row=False):
    """A model, its samples alone (0, 1 and 2 pictures, in another order), and in one row."""
    model = family.build()
    parts = [alone(family, model, family.named("batch")[i]) for i in (1, 0, 2)]
    return model, parts, in_one_row(parts, text_row=text_row)


@torch.no_grad()
def worst(model, parts, row):
    """The largest difference between logits in the row and alone."""
    together = model(**row, use_cache=False).logits[0]
    lengths = [part["input_ids"].shape[1] for part in parts]
    pairs = zip(together.split(lengths), parts, strict=True)
    return max((a - model(**b, use_cache=False).logits[0]).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@both_layouts
def test_a_packed_sample_has_the_logits_it_has_alone(family, path, plan):
    model, parts, row = packed(family)
    with vtfast.patch(model, plan, path=path), probing(first_rows):
        assert worst(model, parts, row) <= ATOL


@pytest.mark.parametrize("plan", ["divprune+random", "fastv", "dart", "pyramiddrop", "vtw"])
@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_trained_models_packed_samples_have_the_logits_they_have_alone(name, path, plan):
    """Where weights are not random, rounding stays below 2e-5."""
    model, parts = toy_scenes(name, 2)
    with vtfast.patch(model, plan, path=path):
        assert worst(model, parts, in_one_row(parts)) <= 2e-5


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_positions_of_text_above_those_of_pictures_tell_samples_too(path):
    model, parts, row = packed(FAMILIES["qwen"], text_row=True)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        assert worst(model, parts, row) <= ATOL


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_clips_are_packed_like_pictures(path):
    family = FAMILIES["qwen"]
    model = family.build()
    parts = [alone(family, model, sample) for sample in family.named("video")]
    with vtfast.patch(model, FOUR_STAGES, path=path):
        assert worst(model, parts, in_one_row(parts)) <= ATOL


@both_layouts
def test_samples_that_begin_with_a_picture_or_hold_one_token_are_told_apart(family, path):
    model = family.build()
    samples = family.samples([Picture(seed=1), 3], [0], [0], [Picture(seed=2), 2])
    for sample in samples[:1] + samples[3:]:
        del sample.ids[0]  # the token that starts every sample
    parts = [alone(family, model, sample) for sample in samples]
    with vtfast.patch(model, FOUR_STAGES, path=path):
        assert worst(model, parts, in_one_row(parts)) <= ATOL


@both_layouts
def test_several_rows_may_hold_several_samples_each(family, path):
    model, parts, row = packed(family)
    batch = in_rows([row, in_one_row(parts[::-1])])
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for i, own in enumerate((row, in_one_row(parts[::-1]))):
            expected = model(**own, use_cache=False).logits[0]
            torch.testing.assert_close(logits[i], expected, rtol=0, atol=ATOL)


@both_layouts
def test_the_report_counts_packed_samples(family, path):
    model, parts, row = packed(family)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        model(**row, use_cache=False)
        together = handle.report
        for sample, part in enumerate(parts):
            if "pixel_values" not in part:
                assert set(together.tokens[sample]) == {0}
                continue
            start = sum(p["input_ids"].shape[1] for p in parts[:sample])
            model(**part, use_cache=False)
            assert handle.report.tokens[0] == together.tokens[sample]
            for layer, (columns,) in handle.report.kept.items():
                assert torch.equal(together.kept[layer][sample], columns + start)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_loss_and_gradients_are_those_of_the_samples_alone(family, plan):
    model, parts, row = packed(family)
    model.train()
    for part in parts:
        part["labels"] = part["input_ids"].clone()
        part["labels"][:, :-4] = -100
    row["labels"] = torch.cat([part["labels"] for part in parts], 1)

    def gradients():
        found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    with vtfast.patch(model, plan) as handle, probing(first_rows):
        loss = model(**row, use_cache=False).loss
        loss.backward()
        assert handle.report.path == "padded"
        together = gradients()
        expected = sum(model(**part, use_cache=False).loss for part in parts) / len(parts)
        expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    for name, grad in gradients().items():
        near = 1e-5 * max(1.0, 3 * grad.abs().max().item())
        torch.testing.assert_close(together[name], grad, rtol=1e-4, atol=near, msg=name)


@both_layouts
def test_keeping_all_is_bit_identical(family, path):
    model, _, row = packed(family)
    with torch.no_grad():
        expected = model(**row, use_cache=False).logits
        with vtfast.patch(model, keep=1.0, path=path):
            assert torch.equal(model(**row, use_cache=False).logits, expected)


def test_flash_attention_is_told_nothing_of_tokens_that_are_gone():
    """Its cuts of the full row would read out of range."""
    family, seen = FAMILIES["llava"], []

    def spy(module, query, *args, cu_seq_lens_q=None, **kwargs):
        seen.append((query.shape[2], cu_seq_lens_q))
        return sdpa_attention_forward(module, query, *args, **kwargs)

    model, parts, row = packed(family)
    ends = torch.tensor([p["input_ids"].shape[1] for p in parts]).cumsum(0)
    cuts = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()
    flash = {"cu_seq_lens_q": cuts, "cu_seq_lens_k": cuts, "max_length_q": 80, "max_length_k": 80}
    AttentionInterface.register("test-cuts", spy)
    AttentionMaskInterface.register("test-cuts", sdpa_mask)
    try:
        text_of(model).set_attn_implementation("test-cuts")
        with vtfast.patch(model, [Prune(2, "random", 0.5)]), torch.no_grad():
            model(**row, **flash, use_cache=False)
    finally:
        for registry in (AttentionInterface, AttentionMaskInterface):
            registry._global_mapping.pop("test-cuts")
    assert len(seen) == 6
    assert all(told is None or told[-1] == length for length, told in seen)


# -- what cannot be --------------------------------------------------------------------------------


def refused(family, match, path="padded", **changes):
    model, _, row = packed(family)
    before = model.state_dict()["lm_head.weight"].clone()
    row = {**row, "use_cache": False, **changes}
    with (
        vtfast.patch(model, FOUR_STAGES, path=path),
        pytest.raises(InputError, match=match),
        torch.no_grad(),
    ):
        model(**row)
    assert torch.equal(model.lm_head.weight, before)


@both_layouts
def test_a_cache_is_refused(family, path):
    refused(family, r"2 rows|1 rows hold 3 samples.*use_cache=False", path, use_cache=True)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_cache_that_a_model_makes_by_itself_is_refused(family):
    refused(family, "use_cache=False", use_cache=None)


@both_layouts
def test_a_mask_of_blocks_is_refused(family, path):
    n = packed(family)[2]["input_ids"].shape[1]
    refused(family, "position_ids that start again", path, attention_mask=torch.zeros(1, 1, n, n))


def test_positions_that_start_again_within_a_picture_are_refused():
    family = FAMILIES["llava"]
    row = packed(family)[2]
    positions = row["position_ids"].clone()
    positions[0, 10:] -= 10  # within the first picture
    refused(family, "picture 0 begins in sample 0 and ends in sample 1", position_ids=positions)


def test_flash_attentions_samples_must_be_those_of_the_positions():
    refused(FAMILIES["llava"], "cu_seq_lens_q begins", cu_seq_lens_q=torch.tensor([0, 5, 60]))
