"""Plain greedy loops that `bench_diversity.py` times beside `dpp_select` and `coverage_select`.

Each takes cosines and gives what every row gains but for its weight, either computed anew at every
pick or updated with it. They take NumPy's arrays, which are faster on a CPU, and PyTorch's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def picked(gains: Callable, distance: Any, weight: Any, k: int) -> list[int]:
    """Picks by the weighted gains of one of the generators below, which take them one by one."""
    steps, picks = gains(1 - distance), []
    gain = next(steps)
    for _ in range(k):
        gain = weight * gain
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        gain = steps.send(picks[-1])
    return picks


def solved(cosine: Any) -> Iterator[Any]:
    linalg, picks = np.linalg if isinstance(cosine, np.ndarray) else torch.linalg, []
    while True:
        rows = cosine[picks]
        picks.append((yield 1 - (rows * linalg.solve(rows[:, picks], rows)).sum(0)))


def new_vector(line: Any, own: Any, vectors: Any, residual: Any) -> Any:
    return (line - own @ vectors) / residual**0.5


def uncovered(cosine: Any, best: Any) -> Any:
    return (cosine - best).clip(0).sum(1)


def factorised(cosine: Any, step: Callable = new_vector) -> Iterator[Any]:
    """Algorithm 1 of Chen et al. 2018: one product of a vector and all vectors so far a pick."""
    residual, vectors = cosine[0] * 0 + 1, cosine * 0
    for done in range(len(cosine)):
        pick = yield residual
        before = vectors[:done]
        new = vectors[done] = step(cosine[pick], before[:, pick], before, residual[pick])
        residual = residual - new * new
    yield residual


def one_by_one(cosine: Any) -> Iterator[Any]:
    best = cosine[0] * 0
    while True:
        pick = yield _stacked([(line - best).clip(0).sum() for line in cosine])
        best = best + (cosine[pick] - best).clip(0)


def _stacked(gains: list[Any]) -> Any:
    return torch.stack(gains) if isinstance(gains[0], torch.Tensor) else np.array(gains)


def covered(cosine: Any, step: Callable = uncovered) -> Iterator[Any]:
    best = cosine[0] * 0
    while True:
        pick = yield step(cosine, best)
        best = best + (cosine[pick] - best).clip(0)


def covered_more(cosine: Any) -> Iterator[Any]:
    """Gains sink by what rows that are covered better now had in them."""
    best, sums = cosine[0] * 0, cosine.clip(0).sum(1)
    while True:
        nearer = cosine[(yield sums)]
        better = nearer > best
        rows, old, new = cosine[better], best[better][:, None], nearer[better][:, None]
        sums = sums - ((rows - old).clip(0) - (rows - new).clip(0)).sum(0)
        best = best + (nearer - best).clip(0)


STEPS = {factorised: new_vector, covered: uncovered}  # what can be compiled
