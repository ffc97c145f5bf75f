"""Accuracies of the bundled models on pinned scenes, each measured once in a test session."""

from functools import cache

import torch

import vtfast
from vtfast import Prune, toy
from vtfast.toy import evaluate

SCENES, SEED = 500, 20_000  # a seed that training never saw


@cache
def bundled(name: str = "llava"):
    """The model and its processor."""
    return toy.load(name, dtype=torch.float32)


@cache
def score(task: str, stage: tuple[int, str, int] | None = None, name: str = "llava") -> float:
    """Exact match by greedy `generate`, with one prune stage (layer, method, keep) or none."""
    model, processor = bundled(name)
    if stage is None:
        return evaluate.accuracy(model, processor, task, SCENES, SEED)
    with vtfast.patch(model, [Prune(*stage)]):
        return evaluate.accuracy(model, processor, task, SCENES, SEED)
