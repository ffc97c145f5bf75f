"""Pictures of every size, clips between them, embeddings for ids: results are the oracle's."""

import pytest
import torch
from model_oracle import Oracle
from model_readings import evenly_spaced
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, gone, logits_of
from tiny_models import FAMILIES, image_columns
from tiny_parts import Picture

import vtfast
from vtfast import Plan, Prune

QWEN = FAMILIES["qwen"]
paths = pytest.mark.parametrize("path", ["padded", "packed"])


def clip(frames, height, width, seed):
    return Picture((frames, height, width), seed=seed, video=True)


SHAPES = {
    "one-token": [[3, Picture((1, 2, 2), seed=1), 4]],
    "wide-and-tall": [
        [2, Picture((1, 2, 24), seed=1), 3, Picture((1, 20, 2), seed=2), 4],
        [1, Picture((1, 14, 10), seed=3), 2],
    ],
    "clips-around-an-image": [
        [2, clip(2, 4, 6, 1), 1, Picture((1, 8, 6), seed=2), 2, clip(3, 6, 4, 3), 4],
        [5, Picture((1, 4, 4), seed=4), 2],
        [3],
    ],
    "the-same-picture-twice": [
        [2, Picture((1, 8, 6), seed=2), 1, Picture((1, 8, 6), seed=2), 3],
        [4, Picture((1, 8, 6), seed=2), 3],
    ],
}
PER_FRAME = [Prune(0, "diversity", 0.6, per="frame"), Prune(3, "random", 0.3, per="frame")]
PLANS = [pytest.param(FOUR_STAGES, id="per-image"), pytest.param(PER_FRAME, id="per-frame")]


def check(family, path, plan, samples):
    """Logits, then twelve tokens; returns the columns kept."""
    inputs, model = family.batch(samples), family.build()
    oracle = Oracle(family.build(attention="eager"), inputs)
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits = logits_of(family, model, inputs)
        lost = gone(inputs, handle.report.kept)
        alive = oracle.survivors(lost)
        torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)
        tokens = continuation(model, inputs, steps=12)
    assert torch.equal(tokens, oracle.greedy(gone(inputs, handle.report.kept), 12))
    return handle.report.kept


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", SHAPES)
@paths
def test_pictures_and_clips_of_every_size_are_the_oracles(path, name, plan):
    check(QWEN, path, plan, QWEN.samples(*SHAPES[name]))


@paths
def test_every_picture_of_a_batch_keeps_its_own_budget(path):
    samples = QWEN.samples(*SHAPES["clips-around-an-image"])
    kept = check(QWEN, path, FOUR_STAGES, samples)
    columns = image_columns(QWEN, samples, QWEN.batch(samples))
    for stage in range(len(FOUR_STAGES)):
        for row, sample in enumerate(samples):
            for picture, own in zip(sample.pictures, columns[row], strict=True):
                survivors = torch.isin(kept[FOUR_STAGES[stage].layer][row], own).sum()
                assert survivors == Plan(FOUR_STAGES).counts(QWEN.tokens_of(picture))[stage]


@paths
def test_frames_of_one_clip_draw_picks_of_their_own(path):
    """They share the clip's hash, which is mixed with the number of the frame."""
    samples = QWEN.samples([3, clip(4, 8, 6, 1), 5])
    inputs, model = QWEN.batch(samples), QWEN.build()
    plan = [Prune(0, "random", 0.5, per="frame"), Prune(3, "random", 0.25, per="frame")]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits_of(QWEN, model, inputs)
    [[columns]] = image_columns(QWEN, samples, inputs)
    [first], [second] = handle.report.kept.values()
    stayed = torch.isin(columns, first).view(4, 12)
    assert stayed.sum(1).tolist() == [6, 6, 6, 6]
    assert len(stayed.unique(dim=0)) == 4
    again = torch.isin(first, second).view(4, 6)  # of frames pruned by the stage before
    assert again.sum(1).tolist() == [3, 3, 3, 3]
    assert len(again.unique(dim=0)) == 4


@paths
def test_what_is_left_of_frames_is_no_grid(path):
    """Half of two frames is as many tokens as one frame has, but not its grid."""
    samples = QWEN.samples([3, clip(2, 8, 6, 1), 5])
    inputs, model = QWEN.batch(samples), QWEN.build()
    plan = [Prune(0, "random", 0.5, per="frame"), Prune(3, "uniform", 0.2)]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits_of(QWEN, model, inputs)
    [first], [second] = handle.report.kept.values()
    assert second.tolist() == first[evenly_spaced(12, 5, (1, 1, 12))].tolist()


@paths
def test_touching_llava_pictures_are_the_oracles(path):
    """Three pictures without a word between them, in two of three samples."""
    family = FAMILIES["llava"]
    a, b, c = (Picture(seed=seed) for seed in (1, 2, 3))
    check(family, path, FOUR_STAGES, family.samples([2, a, b, c, 4], [3, c, a, 5], [7]))


# -- embeddings in place of ids --------------------------------------------------------------------


def without_ids(model, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    return {**{k: v for k, v in inputs.items() if k != "input_ids"}, "inputs_embeds": embeddings}


@both_layouts
def test_embeddings_and_pixels_have_the_oracles_logits(family, path):
    model, inputs = family.build(), family.inputs("batch")
    oracle = Oracle(family.build(attention="eager"), inputs)
    positions = oracle.position_ids(0, inputs["input_ids"].shape[1])
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle, torch.no_grad():
        logits = model(**without_ids(model, inputs), position_ids=positions).logits
    lost = gone(inputs, handle.report.kept)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)


@both_layouts
def test_embeddings_and_pixels_generate_the_oracles_tokens(family, path):
    """Without ids Qwen counts positions as in text, patched or not; so does the oracle then."""
    model, inputs = family.build(), family.inputs("batch")
    oracle = Oracle(family.build(attention="eager"), inputs)
    counted = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    oracle.positions = counted.expand(len(oracle.positions), -1, -1)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        tokens = model.generate(**without_ids(model, inputs), max_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, oracle.greedy(gone(inputs, handle.report.kept), 8))


@both_layouts
def test_embeddings_beside_ids_change_nothing(family, path):
    model, inputs = family.build(), family.inputs("batch")
    both = {**without_ids(model, inputs), "input_ids": inputs["input_ids"]}
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = continuation(model, inputs, steps=6)
        assert torch.equal(continuation(model, both, steps=6), expected)
