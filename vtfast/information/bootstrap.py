"""Means over samples with bootstrap intervals, reproducible by a seed."""

from dataclasses import dataclass

import numpy as np

ROUNDS = 2000


@dataclass(frozen=True)
class Estimate:
    """Means with two-sided percentile intervals, one entry per layer (or one alone)."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def resample(n: int, seed: int, rounds: int = ROUNDS) -> np.ndarray:
    """Weights fp64 [rounds, n] whose rows sum to 1: n samples drawn with replacement, as shares."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    return drawn / n


def estimate(values: np.ndarray, weights: np.ndarray, confidence: float) -> Estimate:
    """Mean over samples of values [n, k] (or [n]) and its interval under `resample`'s weights."""
    values = values.reshape(len(values), -1).astype(np.float64)
    outside = (1 - confidence) / 2
    low, high = np.quantile(weights @ values, [outside, 1 - outside], axis=0)
    return Estimate(*(tuple(x.tolist()) for x in (values.mean(0), low, high)))


def upper(values: np.ndarray, weights: np.ndarray, confidence: float) -> np.ndarray:
    """One-sided upper bounds fp64 [k] of the means of values [n, k]."""
    return np.quantile(weights @ values.astype(np.float64), confidence, axis=0)
