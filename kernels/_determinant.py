"""Greedy picks by determinant in plain PyTorch, for `reference.dpp_select`.

A Cholesky factorisation of the cosines S, one picked row p at a time (Chen et al. 2018). Each row
has a residual s, which begins as 1 and sinks with every pick:

    e_j = (S_pj - Σ_t c_t[p] c_t[j]) / √s_p        s_j -= e_j²        the next c_t is e

Weights need not be in it, since the factor of diag(q) S diag(q) is q times that of S.
"""

import torch

from ._gains import NEARLY, PICKED, and_the_rest, first_of_the_best
from ._numpy import np, numpy_reads

# Residuals of at most this count as 0: the row is, but for rounding, a combination of picked ones.
# Cosines in fp32 are off by 1e-6 and residuals by some times as much. A larger limit would give
# away rows that do differ, a smaller one would divide rounding by itself.
SPENT = 2.0**-13


def greedy(distance: torch.Tensor, rank: torch.Tensor, steps: int) -> torch.Tensor:
    """Picked columns `[B, steps]` int64 in pick order; overwrites the distances.

    distance: `[B, N, N]` from `_max_min.distances`. rank: `[B, N]` from `_gains.py`.
    """
    # Only rows with a direction are at distance 0, or nearly, from themselves.
    residual = (distance.diagonal(dim1=1, dim2=2) < 0.5).float()
    cosine = torch.sub(1.0, distance, out=distance)
    cosine.masked_fill_(cosine.isinf(), 0.0)
    if not numpy_reads(rank):
        return _greedy_loop(cosine, residual, rank, steps)
    parts = zip(cosine.numpy(), residual.numpy(), rank.numpy(), strict=True)
    return torch.from_numpy(np.stack([_greedy_loop_numpy(*part, steps) for part in parts]))


def _greedy_loop(
    cosine: torch.Tensor, residual: torch.Tensor, rank: torch.Tensor, steps: int
) -> torch.Tensor:
    batch, columns = rank.shape
    vectors = residual.new_empty(batch, steps, columns)
    order = torch.empty(batch, steps, dtype=torch.int64, device=rank.device)
    for step in range(steps):
        best, pick = first_of_the_best(torch.where(rank > 0, rank * residual, rank))
        order[:, step : step + 1] = pick
        rank = rank.scatter(1, pick, PICKED)
        line = pick[:, :, None]
        own = vectors[:, :step].gather(2, line.expand(-1, step, -1))  # [B, step, 1]
        new = cosine.gather(1, line.expand(-1, -1, columns))
        new = new - (own * vectors[:, :step]).sum(1, keepdim=True)
        root = residual.gather(1, pick).sqrt_()
        new = torch.where(best > 0, new[:, 0] / root, 0.0)
        vectors[:, step] = new
        residual = residual - new * new
        residual.masked_fill_(residual <= SPENT, 0.0)
    return order


def _greedy_loop_numpy(
    cosine: np.ndarray, residual: np.ndarray, rank: np.ndarray, steps: int
) -> np.ndarray:
    """`_greedy_loop` of one segment on CPU memory; it ends where no row has a gain."""
    vectors = np.empty((steps, len(rank)), np.float32)
    weight, square = np.maximum(rank, 0), np.empty_like(residual)
    gain = weight * residual
    picks: list[int] = []
    for new in vectors:
        best = gain.max()
        if best <= 0:
            break
        pick = int((gain >= best * np.float32(NEARLY)).argmax())
        before = vectors[: len(picks)]
        np.matmul(before[:, pick], before, out=new)
        np.subtract(cosine[pick], new, out=new)
        new /= np.sqrt(residual[pick])
        residual -= np.multiply(new, new, out=square)
        residual[pick] = 0
        np.multiply(residual, residual > SPENT, out=residual)
        np.multiply(weight, residual, out=gain)
        picks.append(pick)
    return and_the_rest(picks, rank, steps)
