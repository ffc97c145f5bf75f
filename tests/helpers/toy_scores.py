"""Accuracies of the bundled models on pinned scenes, each measured once in a test session."""

from copy import deepcopy
from functools import cache
from statistics import fmean
from typing import Any

import torch

import vtfast
from vtfast import Prune, toy
from vtfast.toy import evaluate
from vtfast.toy.model import family_of

SCENES, SEED = 500, 20_000  # a seed that training never saw

Stage = tuple[int, str, int | float]  # layer, method, keep


@cache
def bundled(name: str = "llava"):
    """A bundled model and its processor."""
    return toy.load(name, dtype=torch.float32)


@cache
def scored(name: str):
    """A bundled model whose vision tower runs once for each batch of pictures, and its processor.

    It takes most of the time of a pruned run, and no plan changes what it returns. Of its hidden
    states only those that LLaVA reads are kept.
    """
    model, processor = toy.load(name, dtype=torch.float32)
    tower = getattr(model.model, "vision_tower", None) or model.model.visual
    forward, returned = tower.forward, {}

    def remembered(pixels: torch.Tensor, *args: Any, **options: Any) -> Any:
        key = hash(pixels.numpy().tobytes())
        if key not in returned:
            found = forward(pixels, *args, **options)
            if found.hidden_states:
                unread = (None,) * (len(found.hidden_states) - 2)
                found.hidden_states = (*unread, found.hidden_states[-2], None)
                found.last_hidden_state = None
            returned[key] = found
        return deepcopy(returned[key])

    tower.forward = remembered
    return model, processor


@cache
def score(task: str, stage: Stage | None = None, name: str = "llava") -> float:
    """Exact match by greedy `generate`, with one prune stage or none, on the model's own sizes.

    On at least `SCENES` scenes, equally many of each size. Pruned, Qwen sees every second of its
    sizes, so half as many scenes, which is enough for the bounds in use.
    """
    sizes = family_of(scored(name)[0]).SIZES[:: 1 if stage is None else 2]
    return fmean(score_at(size, task, stage, name) for size in sizes)


@cache
def score_at(size: tuple[int, int], task: str, stage: Stage | None, name: str) -> float:
    """The same on scenes of one size; those of another size are other scenes."""
    model, processor = scored(name)
    sizes = family_of(model).SIZES
    asked = {"n": -(-SCENES // len(sizes)), "seed": SEED + sizes.index(size), "sizes": (size,)}
    if stage is None:
        return evaluate.accuracy(model, processor, task, **asked)
    with vtfast.patch(model, [Prune(*stage)]):
        return evaluate.accuracy(model, processor, task, **asked)
