"""Clips and many pictures: every method, every budget, counts as planned, memory in bounds."""

import itertools

import pytest
import torch
from model_runs import continuation, logits_of
from tiny_models import FAMILIES, image_columns
from tiny_parts import Picture

import vtfast
from vtfast import Plan, Prune

QWEN = FAMILIES["qwen"]
METHODS = ("random", "uniform", "diversity", "cdpruner", "scope", "visionzip", "vispruner", "topk")
METHODS += ("dart", "drop")
paths = pytest.mark.parametrize("path", ["padded", "packed"])


def plan_of(method, per):
    """A stage by this method at the input of layer 2, and a few random tokens of what is left."""
    first = Prune(2, method, 0 if method == "drop" else 0.25, per=per)
    return [first] if method == "drop" else [first, Prune(4, "random", 0.05, per=per)]


def watch(method, per, path, grid, steps=1):
    """A clip of `grid` merged tokens through a tiny Qwen2.5-VL; returns what each layer saw.

    By hand, 64 frames of 512 tokens: watch("dart", "image", "packed", (32, 16, 32)).
    """
    frames, rows, columns = grid
    clip = Picture((frames, 2 * rows, 2 * columns), seed=1, video=True)
    samples = QWEN.samples([3, clip, 9])
    inputs, model = QWEN.batch(samples), QWEN.build()
    with vtfast.patch(model, plan_of(method, per), path=path, record=True) as handle:
        continuation(model, inputs, steps=steps)
    return handle.report, image_columns(QWEN, samples, inputs)[0][0]


@paths
@pytest.mark.parametrize("per", ["image", "frame"])
@pytest.mark.parametrize("method", METHODS)
def test_a_clip_of_64_frames_goes_through_every_method(method, per, path):
    """Two frames make a step in time: 32 steps of 2 x 4 tokens."""
    grid = (32, 2, 4)
    report, columns = watch(method, per, path, grid)
    n, parts = (256, 1) if per == "image" else (8, 32)
    counts = [n, *Plan(plan_of(method, per)).counts(n)]
    at = [0, 2, 4][: len(counts)]
    expected = [parts * counts[sum(layer >= start for start in at) - 1] for layer in range(6)]
    assert list(report.tokens[0]) == expected
    for stage, count in zip(report.plan.stages, counts[1:], strict=True):
        stayed = torch.isin(columns, report.kept[stage.layer][0])
        assert stayed.view(parts, n).sum(1).tolist() == [count] * parts


def mixed(draw):
    """Samples of 0 to 4 pictures and clips of several sizes."""
    sizes = [(1, 2, 2), (1, 6, 8), (1, 12, 4), (4, 4, 6)]
    out = []
    for _ in range(3):
        parts = [int(torch.randint(1, 4, (1,), generator=draw))]
        for _ in range(int(torch.randint(0, 5, (1,), generator=draw))):
            size = sizes[int(torch.randint(0, 4, (1,), generator=draw))]
            parts.append(Picture(size, seed=len(out), video=size[0] > 1))
        out.append([*parts, 6])
    return out


@pytest.mark.parametrize("keep", [0.5, 0.1, 3, 1000], ids=str)
@pytest.mark.parametrize("method", METHODS[:-1])
def test_every_picture_of_a_prompt_has_a_quota_of_its_own(method, keep):
    """Counts follow from sizes alone, picture by picture: a fraction, or a number of tokens."""
    samples = QWEN.samples(*mixed(torch.Generator().manual_seed(7)))
    inputs, model = QWEN.batch(samples), QWEN.build()
    path = "packed" if method in ("dart", "topk") else "padded"
    stage = Prune(2, method, keep)
    with vtfast.patch(model, [stage], path=path, record=True) as handle:
        logits_of(QWEN, model, inputs)
    kept = handle.report.kept.get(2)
    pictures = list(itertools.chain(*(sample.pictures for sample in samples)))
    assert len(pictures) > 4
    if keep == 1000:
        assert kept is None  # nothing was dropped
        return
    for row, columns in enumerate(image_columns(QWEN, samples, inputs)):
        for picture, own in zip(samples[row].pictures, columns, strict=True):
            n = QWEN.tokens_of(picture)
            assert torch.isin(own, kept[row]).sum() == stage.count(n, n)
