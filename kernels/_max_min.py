"""Cosine distances and greedy max-min picks in plain PyTorch, for `reference.diversity_select`.

Two ways to the same picks. `greedy` reads whole matrices of distances, of several segments at once.
`greedy_by_rows` serves one segment whose matrix is too large to keep: it makes the distances to a
picked row when it needs them. With weights, the distances of row j, in column j, are multiplied by
w_j where they are made; since rounding keeps the order, a minimum may be multiplied instead.
"""

from itertools import pairwise
from math import isqrt

import torch

from ._numpy import np, numpy_reads
from .ragged import Ragged

_MIN_ROWS_TO_HALVE = 256  # on a CPU: for fewer rows one product is as fast as several smaller ones
_MIN_NORM = 2.0**-63  # its square is the smallest number fp32 holds with all bits
# Below every distance, that of copies under a large weight too: it may be -1e-7 times that weight.
# But above the -infinity of picked rows.
_BELOW_DISTANCES = -3e38
_FEWEST_AHEAD = 32  # rows of distances made at a time on a CPU; a product of fewer is inefficient


class UnitRows:
    """Rows `[T, D]` of any floating dtype as fp32 unit vectors, made a part at a time.

    A row without a direction, because it is (nearly) zero or not finite, is a zero vector. A row
    whose weight is negative or not finite counts as one that is not finite.

    Attributes:
        parts: slices that together are all rows. The vectors of one part, and the distances between
            two parts, take at most a sixteenth of `max_bytes`.
        finite: bool `[T, 1]`, whether the squared norm of a row is finite in fp32, and its weight
            is one.
        ceiling: fp32 `[T, 1]`, 1 for a finite row, else infinity; a distance is ceiling - cosine.
        limit: fp32 `[T]`, infinity for a finite row, else less than every distance.
        weights: fp32 `[T]`, 1 for a row that is not finite; None if all rows weigh 1.
    """

    def __init__(
        self, features: torch.Tensor, max_bytes: int, weights: torch.Tensor | None = None
    ) -> None:
        (rows, width), part_bytes = features.shape, max_bytes // 16
        step = max(1, min(part_bytes // max(1, 4 * width), isqrt(part_bytes // 4)))
        self.parts = [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
        self._features = features
        self._held: torch.Tensor | None = None
        self._norm = features.new_empty(rows, 1, dtype=torch.float32)
        for part in self.parts:
            norm = self._norm[part]
            torch.linalg.vector_norm(features[part].float(), dim=1, keepdim=True, out=norm)
        self.finite = self._norm.isfinite()
        self.weights = weights
        if weights is not None:
            self.finite &= ((weights >= 0) & (weights < torch.inf))[:, None]
            self.weights = weights.masked_fill(~self.finite.squeeze(1), 1.0)
        self._directed = self.finite & (self._norm >= _MIN_NORM)
        self.ceiling = torch.ones_like(self._norm).masked_fill_(~self.finite, torch.inf)
        limit = torch.full_like(self._norm, torch.inf)
        self.limit = limit.masked_fill_(~self.finite, _BELOW_DISTANCES).squeeze(1)

    def hold(self) -> "UnitRows":
        """Make all vectors now and keep them."""
        held = self._norm.new_empty(self._features.shape)
        # Memory takes longer than the division: it is in place, and no pass is made for nothing.
        readable = numpy_reads(held)
        for part in self.parts:
            x = torch.div(self._features[part].float(), self._norm[part], out=held[part])
            if not (readable and self._directed[part].numpy().all()):
                x.masked_fill_(~self._directed[part], 0.0)
        self._held = held
        return self

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        if self._held is not None:
            return self._held[rows]
        x = self._features[rows].float() / self._norm[rows]
        return x.masked_fill_(~self._directed[rows], 0.0)


def distances(
    features: torch.Tensor, segments: Ragged, max_bytes: int, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine distances within each segment, and an upper limit for each row's nearest distance.

    Returns the distances `[B, N, N]` with N the longest segment, and the limits `[B, N]`: infinity
    for a finite row, less than every distance for one that is not finite, -infinity for padding.
    Rows that are not finite, and padding, are infinitely far from every other row. `max_bytes`
    limits what is needed beside these and the unit vectors.
    """
    x = UnitRows(features, max_bytes, weights).hold()
    square = segments.max_seqlen, segments.max_seqlen
    distance = x.limit.new_full((len(segments), *square), torch.inf)
    # One product per segment, so its rounding cannot depend on the rest of the batch.
    for matrix, (begin, end) in zip(distance, pairwise(segments.offsets), strict=True):
        rows, n = slice(begin, end), end - begin
        _fill_distances(x[rows], x.ceiling[rows], matrix[:n, :n])
        if x.weights is not None:
            _weigh(matrix[:n, :n], x.weights[rows])
    return distance, segments.pad(x.limit, -torch.inf)


def _weigh(distance: torch.Tensor, weights: torch.Tensor) -> None:
    """Multiply the columns of `distance` `[..., N]` by `weights` `[N]`; infinity stays infinity."""
    distance.mul_(weights).nan_to_num_(torch.inf, torch.inf)  # 0 times infinity is NaN


def _fill_distances(x: torch.Tensor, ceiling: torch.Tensor, out: torch.Tensor) -> None:
    """`out[i, j] = ceiling[i] - x[i] · x[j]`, in halves, to compute the off-diagonal once.

    Every product has `out=`: autocast leaves it alone.
    """
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
    loop = _greedy_loop_numpy if numpy_reads(limit) else _greedy_loop
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


def greedy_by_rows(
    features: torch.Tensor, steps: int, max_bytes: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Picked rows `[steps]` int64 of one segment in pick order, within `max_bytes` of memory."""
    x = UnitRows(features, max_bytes, weights)
    if 4 * features.numel() <= max_bytes // 4:
        x.hold()
    nearest = torch.minimum(_nearest_others(x), x.limit)
    order = torch.empty(steps, dtype=torch.int64, device=features.device)
    if numpy_reads(features):
        # A quarter of the memory for the distances made ahead, a sixteenth for their unit vectors.
        rows, width = features.shape
        ahead = min(max_bytes // (16 * rows), max_bytes // max(1, 64 * width), rows)
        _pick_by_rows_numpy(x, nearest.numpy(), x.limit.numpy(), order.numpy(), max(1, ahead))
    else:
        _pick_by_rows(x, nearest, x.limit, order)
    return order


def _nearest_others(x: UnitRows) -> torch.Tensor:
    """Each row's distance to its nearest other row, fp32 `[T]`, from one tile after another."""
    nearest = torch.full_like(x.limit, torch.inf)
    for number, i in enumerate(x.parts):
        for j in x.parts[number:]:
            tile = nearest.new_empty(i.stop - i.start, j.stop - j.start)
            torch.addmm(x.ceiling[i], x[i], x[j].T, alpha=-1, out=tile)
            tile.masked_fill_(~x.finite[j].T, torch.inf)
            if i == j:
                tile.fill_diagonal_(torch.inf)
            nearest[i] = torch.minimum(nearest[i], tile.amin(1))
            nearest[j] = torch.minimum(nearest[j], tile.amin(0))
    if x.weights is not None:
        _weigh(nearest, x.weights)
    return nearest


def _fill_rows(x: UnitRows, rows: torch.Tensor, out: torch.Tensor) -> None:
    """Distances of all rows to some of them, `out` `[len(rows), T]`."""
    ceiling, chosen = x.ceiling[rows], x[rows]
    for part in x.parts:
        torch.addmm(ceiling, chosen, x[part].T, alpha=-1, out=out[:, part])
    if x.weights is not None:
        _weigh(out, x.weights)


def _pick_by_rows(
    x: UnitRows, nearest: torch.Tensor, limit: torch.Tensor, order: torch.Tensor
) -> None:
    """Fill `order`: pick the farthest row, then lower the limits by the distances to it."""
    row = limit.new_empty(1, len(limit))
    for pick in order.split(1):
        torch.argmax(nearest, 0, keepdim=True, out=pick)
        _fill_rows(x, pick, row)
        nearest = torch.minimum(limit, row[0], out=limit).index_fill_(0, pick, -torch.inf)


def _pick_by_rows_numpy(
    x: UnitRows, nearest: np.ndarray, limit: np.ndarray, order: np.ndarray, most: int
) -> None:
    """`_pick_by_rows` on a CPU, where one product for many rows is far faster than one for each.

    It makes the distances to the rows that are farthest now, at most `most` of them, since many are
    picked next; twice as many as were picked of the last such rows, so few are made in vain.
    """
    distance = x.limit.new_empty(most, len(limit))
    line = np.full(len(limit), -1)  # of `distance`, for each row; -1 if its distances are not there
    picked = 0
    for step in range(len(order)):
        pick = nearest.argmax()
        if line[pick] < 0:
            size = min(max(2 * picked, _FEWEST_AHEAD), most)
            ahead = np.argpartition(nearest, -size)[-size:]
            ahead[0] = pick  # of equal rows it may have taken others
            _fill_rows(x, torch.from_numpy(ahead), distance[:size])
            line.fill(-1)
            line[ahead] = np.arange(size)
            picked = 0
        picked += 1
        order[step] = pick
        nearest = np.minimum(limit, distance[line[pick]].numpy(), out=limit)
        nearest[pick] = -np.inf
