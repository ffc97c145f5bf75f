"""Greedy picks by coverage in plain PyTorch, for `reference.coverage_select`.

`cover` is each row's distance to its nearest picked row, 1 before any is as near as that; a row's
gain is its weight times Σ_i max(0, cover_i - d_ij).
"""

import torch

from ._gains import NEARLY, PICKED, and_the_rest, first_of_the_best
from ._numpy import np, numpy_reads

# Rows that would raise the mean cosine by at most this gain nothing but rounding: cosines in fp32
# are off by 1e-6 and less.
NOTHING = 2.0**-20

_LINES, _FIRST_LINES = 64, 4  # of the matrix, evaluated at a time


def greedy(distance: torch.Tensor, rank: torch.Tensor, steps: int) -> torch.Tensor:
    """Picked columns `[B, steps]` int64 in pick order; overwrites the diagonal of the distances.

    distance: `[B, N, N]` from `_max_min.distances`. rank: `[B, N]` from `_gains.py`.
    """
    own = distance.diagonal(dim1=1, dim2=2)
    own.masked_fill_(own < 0.5, 0.0)  # rows with a direction are at distance 0 from themselves
    if not numpy_reads(rank):
        return _greedy_loop(distance, rank, steps)
    parts = zip(distance.numpy(), rank.numpy(), strict=True)
    return torch.from_numpy(np.stack([_greedy_loop_numpy(*part, steps) for part in parts]))


def _greedy_loop(distance: torch.Tensor, rank: torch.Tensor, steps: int) -> torch.Tensor:
    """Every gain anew at every step: which ones may be the largest is not known on the host."""
    cover = torch.ones_like(rank)[:, None]
    nothing = NOTHING * (rank > PICKED).sum(1, keepdim=True, dtype=torch.float32)
    order = torch.empty(len(rank), steps, dtype=torch.int64, device=rank.device)
    for step in range(steps):
        sums = torch.sub(cover, distance).clamp_(min=0.0).sum(2)
        sums.masked_fill_(sums <= nothing, 0.0)
        _, pick = first_of_the_best(torch.where(rank > 0, rank * sums, rank))
        order[:, step : step + 1] = pick
        rank = rank.scatter(1, pick, PICKED)
        line = pick[:, :, None].expand(-1, -1, rank.shape[1])
        cover = torch.minimum(cover, distance.gather(1, line))
    return order


def _greedy_loop_numpy(distance: np.ndarray, rank: np.ndarray, steps: int) -> np.ndarray:
    """`_greedy_loop` of one segment on CPU memory; it ends where no row has a gain.

    Gains only sink. So the last one computed for a row is a bound, and those rows alone are
    evaluated whose bound reaches the largest gain known: first the few with the largest bounds,
    then all others that still do.
    """
    n = len(rank)
    cover, ones, weight = np.ones(n, np.float32), np.ones(n, np.float32), np.maximum(rank, 0)
    lines = np.empty((_LINES, n), np.float32)
    bound = np.full(n, np.inf, np.float32)
    fresh = np.zeros(n, np.int64)  # the step at which it was evaluated
    picks: list[int] = []
    rows = np.arange(n)
    for step in range(1, steps + 1):
        best = least = np.float32(0)
        while len(rows):
            part = rows[:_LINES]
            gains = lines[: len(part)]
            np.take(distance, part, 0, out=gains, mode="clip")  # "raise" would copy once more
            np.maximum(np.subtract(cover, gains, out=gains), 0, out=gains)
            sums = gains @ ones
            bound[part] = gain = sums * (sums > NOTHING * n) * weight[part]
            fresh[part] = step
            best = max(best, gain.max())
            least = best * np.float32(NEARLY)
            rows = np.flatnonzero((bound >= least) & (fresh < step))
        if best <= 0:
            break
        pick = int((bound >= least).argmax())
        picks.append(pick)
        bound[pick] = 0
        np.minimum(cover, distance[pick], out=cover)
        rows = np.argpartition(bound, -min(_FIRST_LINES, n))[-_FIRST_LINES:]
    return and_the_rest(picks, rank, steps)
