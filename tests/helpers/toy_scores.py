"""Accuracies of the bundled models on pinned scenes, each measured once in a test session."""

from functools import cache
from statistics import fmean

import torch

import vtfast
from vtfast import Prune, toy
from vtfast.toy import evaluate
from vtfast.toy.model import family_of

SCENES, SEED = 500, 20_000  # a seed that training never saw

Stage = tuple[int, str, int | float]  # layer, method, keep


@cache
def bundled(name: str = "llava"):
    """The model and its processor."""
    return toy.load(name, dtype=torch.float32)


@cache
def score(task: str, stage: Stage | None = None, name: str = "llava") -> float:
    """Exact match by greedy `generate`, with one prune stage or none, on the model's own sizes.

    On at least `SCENES` scenes, equally many of each size; pruned, every second size is enough for
    the bounds in use (an eye on Qwen, whose tower takes most of the time).
    """
    sizes = family_of(bundled(name)[0]).SIZES[:: 1 if stage is None else 2]
    return fmean(score_at(size, task, stage, name) for size in sizes)


@cache
def score_at(size: tuple[int, int], task: str, stage: Stage | None, name: str) -> float:
    """The same on scenes of one size; those of another size are other scenes."""
    model, processor = bundled(name)
    sizes = family_of(model).SIZES
    asked = {"n": -(-SCENES // len(sizes)), "seed": SEED + sizes.index(size), "sizes": (size,)}
    if stage is None:
        return evaluate.accuracy(model, processor, task, **asked)
    with vtfast.patch(model, [Prune(*stage)]):
        return evaluate.accuracy(model, processor, task, **asked)
