"""Cosine distances and greedy max-min picks in plain PyTorch, for `reference.diversity_select`."""

from itertools import pairwise

import numpy as np
import torch

from .ragged import Ragged

_MIN_ROWS_TO_HALVE = 256  # on a CPU: for fewer rows one product is as fast as several smaller ones
_MIN_NORM = 2.0**-63  # its square is the smallest number fp32 holds with all bits
_BELOW_DISTANCES = -1e30  # below every distance, but above the -infinity of picked rows


def distances(features: torch.Tensor, segments: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine distances within each segment, and an upper limit for each row's nearest distance.

    Returns the distances `[B, N, N]` with N the longest segment, and the limits `[B, N]`: infinity
    for a finite row, less than every distance for one that is not finite, -infinity for padding.
    """
    x = features.float()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    finite = norm.isfinite()
    directed = finite & (norm >= _MIN_NORM)
    x = (x / norm).masked_fill_(~directed, 0.0)
    # Rows that are not finite, and padding, are infinitely far from every other row.
    ceiling = torch.where(finite, 1.0, torch.inf)
    distance = x.new_full((len(segments), segments.max_seqlen, segments.max_seqlen), torch.inf)
    # One product per segment, so its rounding cannot depend on the rest of the batch; with `out=`,
    # which autocast leaves alone.
    for matrix, (begin, end) in zip(distance, pairwise(segments.offsets), strict=True):
        _fill_distances(x[begin:end], ceiling[begin:end], matrix[: end - begin, : end - begin])
    limit = torch.where(finite, torch.inf, _BELOW_DISTANCES).squeeze(1)
    return distance, segments.pad(limit, -torch.inf)


def _fill_distances(x: torch.Tensor, ceiling: torch.Tensor, out: torch.Tensor) -> None:
    """`out[i, j] = ceiling[i] - x[i] · x[j]`, in halves, to compute the off-diagonal once."""
    n = len(x)
    if n < _MIN_ROWS_TO_HALVE or x.device.type != "cpu":
        torch.addmm(ceiling, x, x.T, alpha=-1, out=out)
        return
    first, second = slice(n // 2), slice(n // 2, n)
    for half in (first, second):
        _fill_distances(x[half], ceiling[half], out[half, half])
    product = x.new_empty(n // 2, n - n // 2)
    torch.mm(x[first], x[second].T, out=product)
    torch.sub(ceiling[first], product, out=out[first, second])
    torch.sub(ceiling[second], product.T, out=out[second, first])


def greedy(distance: torch.Tensor, limit: torch.Tensor, steps: int) -> torch.Tensor:
    """Picked columns `[B, steps]` int64 in pick order; overwrites its inputs from `distances`."""
    batch, columns = limit.shape
    own = distance.diagonal(dim1=1, dim2=2)
    own.fill_(torch.inf)
    nearest = torch.minimum(distance.amin(1), limit)
    own.fill_(-torch.inf)  # so that a picked row is at -infinity from then on

    rows = distance.flatten(0, 1)
    first_row = torch.arange(0, batch * columns, columns, device=limit.device)
    order = first_row.new_empty(steps, batch)
    loop = _greedy_loop_numpy if limit.device.type == "cpu" else _greedy_loop
    loop(rows, first_row, nearest, limit, order)
    return order.T


def _greedy_loop(
    rows: torch.Tensor,
    first_row: torch.Tensor,
    nearest: torch.Tensor,
    limit: torch.Tensor,
    order: torch.Tensor,
) -> None:
    """Fill `order` `[steps, B]`: pick the farthest column of each line, then lower the limits."""
    row, picked = torch.empty_like(limit), torch.empty_like(first_row)
    for pick in order:
        torch.argmax(nearest, 1, out=pick)  # the first of equal maxima, as torch documents
        torch.add(pick, first_row, out=picked)
        torch.index_select(rows, 0, picked, out=row)
        nearest = torch.minimum(limit, row, out=limit)


def _greedy_loop_numpy(*tensors: torch.Tensor) -> None:
    """`_greedy_loop` on CPU memory: a step costs about 1 µs instead of 5."""
    rows, first_row, nearest, limit, order = (x.numpy() for x in tensors)
    row, picked = np.empty_like(limit), np.empty_like(first_row)
    for pick in order:
        np.argmax(nearest, 1, out=pick)  # the first of equal maxima, as NumPy documents
        np.add(pick, first_row, out=picked)
        np.take(rows, picked, 0, out=row, mode="clip")  # "raise" would copy through a buffer
        nearest = np.minimum(limit, row, out=limit)
