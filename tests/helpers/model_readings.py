"""Which tokens a stage must keep, worked out in plain loops from what a model computed.

Python integers and NumPy float64, one image at a time; nothing of vtfast is used.
"""

import math
from fractions import Fraction

import numpy as np
import torch

_64 = (1 << 64) - 1
_32 = (1 << 32) - 1


def top(scores: torch.Tensor, keep: int) -> list[int]:
    """Ranks of the `keep` largest scores, ascending; ties go to the lowest rank."""
    best = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    return sorted(best[:keep])


def diverse(features: torch.Tensor, keep: int) -> list[int]:
    """Greedy max-min on cosine distance, ascending; first the row whose nearest is farthest."""
    x = features.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1 - x @ x.T
    np.fill_diagonal(distance, np.inf)
    picked: list[int] = []
    for _ in range(keep):
        nearest = distance[:, picked].min(1) if picked else distance.min(1)
        nearest[picked] = -np.inf
        picked.append(int(nearest.argmax()))
    return sorted(picked)


def unlike_pivots(
    columns: list[int], text: list[int], keep: int, norms: torch.Tensor, states: torch.Tensor
) -> list[int]:
    """Ranks, ascending, that DART keeps among the `columns` of one picture of a sample.

    text: the sample's other real columns. norms: L1 norm of every column's key. states: its hidden
    state. Pivots are the four largest norms of the picture and the four of the text after it (if
    fewer than four follow, the first text before it is used too). In reading order each takes an
    equal share of the tokens least like it; where shares are unequal, the first take one more.
    """
    x = states.detach().double().numpy()
    own = sorted(columns, key=lambda c: (-norms[c].item(), c))[: min(4, keep)]
    after = sorted((c for c in text if c > columns[0]), key=lambda c: (-norms[c].item(), c))[:4]
    before = [c for c in text if c < columns[0]]
    pivots = sorted(own) + sorted(after + before[: 4 - len(after)])
    taken, left = set(own), keep - len(own)
    for i, pivot in enumerate(pivots):
        share = left // len(pivots) + (i < left % len(pivots))
        rest = [c for c in columns if c not in taken]
        cosine = {
            c: x[c] @ x[pivot] / (np.linalg.norm(x[c]) * np.linalg.norm(x[pivot])) for c in rest
        }
        taken |= set(sorted(rest, key=lambda c: (cosine[c], c))[:share])
    return [rank for rank, column in enumerate(columns) if column in taken]


def evenly_spaced(count: int, keep: int, grid: tuple[int, int, int]) -> list[int]:
    """Ranks of `keep` evenly spaced tokens, ascending; a grid that is not whole is one row."""
    frames, height, width = grid if np.prod(grid) == count else (1, 1, count)
    ranks = []
    for frame, in_frame in _parts(frames, min(frames, keep), keep):
        rows = math.floor(math.sqrt(in_frame * height / width) + 0.5)
        rows = min(max(rows, math.ceil(in_frame / width)), height, in_frame)
        for row, in_row in _parts(height, rows, in_frame):
            for column, _ in _parts(width, in_row, in_row):
                ranks.append((frame * height + row) * width + column)
    return ranks


def _parts(side: int, parts: int, keep: int) -> list[tuple[int, int]]:
    """Where the middle of each part of a side is, and how many of `keep` fall into the part."""
    return [
        (
            math.floor(Fraction(2 * i + 1, 2 * parts) * side),
            sum(Fraction(i, parts) < Fraction(j, keep) <= Fraction(i + 1, parts) for j in counted),
        )
        for counted in [range(1, keep + 1)]
        for i in range(parts)
    ]


def drawn(count: int, keep: int, *, seed: int, image_hash: int, layer: int) -> list[int]:
    """The random picks: the `keep` largest Philox words of `count`, ascending."""
    words = [
        tuple(_philox(i // 4, image_hash, layer | second, seed)[i % 4] for second in (0, 1 << 31))
        for i in range(count)
    ]
    best = sorted(range(count), key=lambda i: (-words[i][0], -words[i][1], i))
    return sorted(best[:keep])


def picture_hash(pixels: torch.Tensor, grid: tuple[int, int, int] = (0, 0, 0)) -> int:
    """The 64-bit hash of one picture, 0 ≤ hash < 2⁶⁴.

    pixels: the picture's values in the order the tower gets them. Each is rounded to bfloat16 (to
    nearest, ties to even) and read as an unsigned 16-bit integer.
    """
    bits = pixels.to(torch.bfloat16).flatten().view(torch.int16).tolist()
    total = sum(mixed_word(b & 0xFFFF, i) for i, b in enumerate(bits))
    t, h, w = grid
    return (total + mixed_word((t << 40) + (h << 20) + w, -1)) & _64


def mixed_word(value: int, number: int) -> int:
    """splitmix64's finalizer."""
    z = (value + (number + 1) * 0x9E3779B97F4A7C15) & _64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
    return z ^ (z >> 31)


def _philox(block: int, image_hash: int, stream: int, seed: int) -> tuple[int, int, int, int]:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""
    a, b, c, d = block, image_hash & _32, (image_hash >> 32) & _32, stream
    low, high = seed & _32, (seed >> 32) & _32
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (second >> 32) ^ b ^ low,
            second & _32,
            (first >> 32) ^ d ^ high,
            first & _32,
        )
        low, high = (low + 0x9E3779B9) & _32, (high + 0xBB67AE85) & _32
    return a, b, c, d
