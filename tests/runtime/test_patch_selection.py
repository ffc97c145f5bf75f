"""Every stage keeps the tokens its method means, worked out from what the model computed."""

import pytest
import torch
from model_oracle import Oracle
from model_readings import diverse, drawn, evenly_spaced, picture_hash, top, unlike_pivots
from model_runs import FOUR_STAGES, both_layouts, gone, logits_of
from tiny_models import FAMILIES, image_columns, visual_columns
from tiny_parts import LAYERS

import vtfast
from vtfast import Plan, Prune

SEED = 11
PLANS = [
    pytest.param([Prune(0, "diversity", 0.4)], id="diversity-before-the-llm"),
    pytest.param([Prune(3, "diversity", 0.4)], id="diversity-at-3"),
    pytest.param([Prune(2, "topk", 0.3)], id="topk-at-2"),
    pytest.param([Prune(0, "topk", 0.3)], id="topk-before-the-llm"),
    pytest.param([Prune(2, "topk", 0.3, score_layer="this")], id="topk-scored-by-its-own-layer"),
    pytest.param([Prune(0, "random", 0.3)], id="random-before-the-llm"),
    pytest.param([Prune(4, "random", 7)], id="seven-random-at-4"),
    pytest.param(FOUR_STAGES, id="four-stages"),
    pytest.param([Prune(2, "dart", 0.4)], id="dart-at-2"),
    pytest.param([Prune(0, "dart", 14)], id="dart-before-the-llm"),
    pytest.param(
        [Prune(0, "uniform", 0.7), Prune(3, "dart", 0.4), Prune(5, "uniform", 0.2)],
        id="uniform-dart-uniform",
    ),
    pytest.param(list(Plan.preset("pyramiddrop", num_layers=LAYERS).stages), id="pyramiddrop"),
]


def pixels_of(family, picture):
    inputs = family.batch(family.samples([1, picture]))
    return inputs["pixel_values"], picture.grid if family.any_size else (0, 0, 0)


def merged_grid(family, picture):
    if not family.any_size:
        return (1, 6, 6)
    frames, height, width = picture.grid
    return frames, height // 2, width // 2


def expected_ranks(stage, *, oracle, row, left, keep, lost, grid, image_hash=None):
    """Ranks among `left`, the columns of one image still there, that a stage must keep."""
    if stage.method == "uniform":
        return evenly_spaced(len(left), keep, grid)
    if stage.method == "random":
        return drawn(len(left), keep, seed=SEED, image_hash=image_hash, layer=stage.layer)
    if stage.method == "diversity":
        return diverse(oracle.hidden(stage.layer, lost)[row, left], keep)
    this = stage.options.get("score_layer") == "this"
    scored_by = stage.layer if this else max(0, stage.layer - 1)
    if stage.method == "dart":
        return unlike_pivots(
            left.tolist(),
            oracle.text_columns(row),
            keep,
            oracle.keys(scored_by, lost)[row].abs().sum(-1),
            oracle.text.norm(oracle.hidden(stage.layer, lost))[row],
        )
    return top(oracle.attention_row(scored_by, lost)[row, left], keep)


@pytest.mark.parametrize("plan", PLANS)
@both_layouts
def test_every_stage_keeps_what_its_method_means(family, path, plan):
    samples = family.named("batch")
    inputs = family.batch(samples)
    model = family.build()
    with vtfast.patch(model, plan, path=path, seed=SEED, record=True) as handle:
        logits_of(family, model, inputs)
    kept = handle.report.kept

    oracle = Oracle(family.build(attention="eager"), inputs)
    left = image_columns(family, samples, inputs)
    for i, stage in enumerate(plan):
        lost = gone(inputs, {s.layer: kept[s.layer] for s in plan[:i]})
        for row, sample in enumerate(samples):
            for image, picture in enumerate(sample.pictures):
                columns = left[row][image]
                ranks = expected_ranks(
                    stage,
                    oracle=oracle,
                    row=row,
                    left=columns,
                    keep=Plan(plan).counts(family.tokens_of(picture))[i],
                    lost=lost,
                    image_hash=picture_hash(*pixels_of(family, picture)),
                    grid=merged_grid(family, picture),
                )
                left[row][image] = columns[ranks]
            expected = torch.cat([torch.zeros(0, dtype=torch.int64), *left[row]])
            assert torch.equal(kept[stage.layer][row], expected), (stage, row)


@both_layouts
def test_kept_columns_are_visual_and_never_come_back(family, path):
    inputs, model = family.inputs("batch"), family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits_of(family, model, inputs)
    before = visual_columns(inputs)
    for stage in FOUR_STAGES:
        after = handle.report.kept[stage.layer]
        assert all(torch.isin(a, b).all() for a, b in zip(after, before, strict=True))
        before = after


@both_layouts
def test_equal_pictures_in_one_batch_draw_equal_picks(family, path):
    [sample] = family.named("single")
    [picture] = sample.pictures
    samples = family.samples([4, picture, 7], [2, picture, 1, picture, 3])
    inputs, model = family.batch(samples), family.build()
    with vtfast.patch(model, [Prune(0, "random", 0.3)], path=path, record=True) as handle:
        logits_of(family, model, inputs)
    kept = handle.report.kept[0]
    ranks = [
        torch.isin(image, kept[row]).tolist()
        for row, images in enumerate(image_columns(family, samples, inputs))
        for image in images
    ]
    assert len(ranks) == 3
    assert ranks[0] == ranks[1] == ranks[2]


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize("per", ["image", "frame"])
@pytest.mark.parametrize("method", ["diversity", "dart", "uniform"])
def test_a_clip_has_one_budget_or_one_per_frame(path, per, method):
    family = FAMILIES["qwen"]
    samples = family.named("video")
    inputs, model = family.batch(samples), family.build()
    plan = [Prune(0, method, 0.6, per=per), Prune(3, method, 0.2, per=per)]
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        logits_of(family, model, inputs)
    kept = handle.report.kept
    oracle = Oracle(family.build(attention="eager"), inputs)

    parts = []  # row, what is left of an image, clip or frame, and the grid it began with
    for row, images in enumerate(image_columns(family, samples, inputs)):
        for columns, picture in zip(images, samples[row].pictures, strict=True):
            grid = merged_grid(family, picture)
            frames = grid[0] if per == "frame" else 1
            sides = (grid[0] // frames, *grid[1:])
            parts += [(row, frame, sides) for frame in columns.chunk(frames)]
    sizes = [len(columns) for _, columns, _ in parts]
    for i, stage in enumerate(plan):
        lost = gone(inputs, {s.layer: kept[s.layer] for s in plan[:i]})
        parts = [
            (row, left[ranks], grid)
            for (row, left, grid), n in zip(parts, sizes, strict=True)
            for keep in [stage.count(n, len(left))]
            for ranks in [
                expected_ranks(
                    stage, oracle=oracle, row=row, left=left, keep=keep, lost=lost, grid=grid
                )
            ]
        ]
        for row in range(len(samples)):
            expected = torch.cat([columns for owner, columns, _ in parts if owner == row])
            assert torch.equal(kept[stage.layer][row], expected)
