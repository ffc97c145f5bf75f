"""The specification: what every op computes, in plain PyTorch. Read this file first.

These functions run on a CPU and wherever an op falls back to PyTorch, on CUDA too without a read
from the device, and the tests hold the kernels to them. Arguments are checked by the op files
beside this one, not here. All selections share these rules:

- The result is int32 row numbers of the packed tensor, ascending within each segment, exactly
  `keep[s]` distinct ones from segment `s`.
- Larger wins, ties go to the lowest row, -0.0 equals +0.0, NaN ranks below -inf.
- What is picked in a segment depends on that segment alone.
- With tensors to `gather` from, the result is a pair of the index and a tuple of their rows.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
import torch

from ._philox import philox_4x32
from ._sdpa import attend, attend_ranges, attend_unread, back_to_back
from .ragged import Ragged

# Of the distances made at once; batches that need more are done in several groups of segments.
_MAX_MATRIX_BYTES = 256 * 2**20
_SECOND_WORD = 0x80000000
_MIN_ROWS_TO_HALVE = 256  # on a CPU: for fewer rows one product is as fast as several smaller ones
_LEAST_NORM = 2.0**-63  # its square is the smallest number fp32 holds with all bits
_BELOW_DISTANCES = -1e30  # but above the -infinity of picked rows


def gather_rows(index: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Copy chosen rows of several packed tensors: `out[j] = x[index[j]]` for each x."""
    return tuple(x.index_select(0, index) for x in tensors)


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    image_hash: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    gather: Sequence[torch.Tensor] = (),
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Draw exactly `keep[s]` rows of each segment, uniformly and reproducibly.

    Row i of a segment draws word i % 4 of Philox-4x32-10 at counter
    (i // 4, low half of the image hash, its high half, stream); the largest words win. Equal words
    are ordered by a second word, drawn with the highest bit of the stream set, then by lowest row.
    """
    device = segments.device
    if image_hash is None:
        image_hash = torch.arange(len(segments), device=device)
    seed, stream = _word(seed, device), _word(stream, device)

    columns = segments.max_seqlen
    counter = torch.broadcast_tensors(
        torch.arange((columns + 3) // 4, device=device),
        (image_hash & 0xFFFFFFFF)[:, None],
        ((image_hash >> 32) & 0xFFFFFFFF)[:, None],
        torch.stack((stream, stream | _SECOND_WORD))[:, :, None],
    )  # each [2, B, ceil(N / 4)]
    words = torch.stack(philox_4x32(torch.stack(counter), seed).unbind(0), dim=-1)
    first, second = words.flatten(2)[:, :, :columns]
    ranks = ((first - 2**31) << 32) + second  # the pair, ordered as one signed integer
    if segments.uniform_length is None:
        ranks.masked_fill_(~segments.live, torch.iinfo(torch.int64).min)
    return _with_rows(_take_best(ranks, segments, keep), gather)


def topk_select(
    scores: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    gather: Sequence[torch.Tensor] = (),
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Pick the `keep[s]` best-scored rows of each segment."""
    scores = scores.detach()
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    scores = scores if integer == torch.int64 else scores.float()
    lowest = torch.iinfo(integer).min
    bits = (scores + 0.0).view(integer)  # -0.0 + 0.0 is +0.0
    # Flipping the value bits of negative numbers makes integers sort like the floats.
    ranks = torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)
    ranks = ranks.masked_fill(scores.isnan(), lowest)
    return _with_rows(_take_best(segments.pad(ranks, lowest), segments, keep), gather)


@torch.no_grad()
def diversity_select(
    features: torch.Tensor, segments: Ragged, keep: Sequence[int], *, return_order: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick rows greedily so that each is as far as possible from those already picked.

    Distance is d(i, j) = 1 - cos(x_i, x_j) in fp32, whatever the input dtype. The first pick is
    the row whose nearest other row is farthest; each next one has the largest distance to its
    nearest picked row. A zero row has cosine 0 to all rows, and so has a row whose squared norm is
    subnormal in fp32. A row whose squared norm is not finite is picked after all finite rows and
    does not affect their distances.
    """
    picks = [segments.cu_seqlens.new_empty(0)]
    at_once = max(1, _MAX_MATRIX_BYTES // max(1, 4 * segments.max_seqlen**2))
    for first in range(0, len(segments), at_once):
        group = slice(first, first + at_once)
        if steps := max(keep[group]):
            part = Ragged.from_lengths(segments.lengths[group], segments.device)
            start = segments.offsets[first]
            order = greedy(*distances(features[start : start + part.total], part), steps)
            rows = order + (part.cu_seqlens[:-1, None] + start)
            picks.append(_take_first(rows, keep[group]).int())
    order = torch.cat(picks)
    index = order.sort().values
    return (index, order) if return_order else index


def distances(features: torch.Tensor, segments: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine distances within each segment, and an upper limit for each row's nearest distance.

    Returns the distances `[B, N, N]` with N the longest segment, and the limits `[B, N]`: infinity
    for a finite row, less than every distance for one that is not finite, -infinity for padding.
    """
    x = features.float()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    finite = norm.isfinite()
    directed = finite & (norm >= _LEAST_NORM)
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
    """`out[i, j] = ceiling[i] - x[i] · x[j]`, in halves: the off-diagonal product is made once."""
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


@torch.no_grad()
def last_query_scores(
    q: torch.Tensor, k: torch.Tensor, segments: Ragged, *, scale: float
) -> torch.Tensor:
    """Attention that each sequence's last query pays to all its keys, averaged over heads, fp32."""
    scores = k.new_empty(len(k), dtype=torch.float32)
    q = (q.float() * scale).unflatten(1, (k.shape[1], -1))  # head h reads key head h // group
    # One product per segment, and with `out=`, for the reasons given in `distances`.
    for query, (begin, end) in zip(q, pairwise(segments.offsets), strict=True):
        logits = q.new_empty(*query.shape[:2], end - begin)  # [Hkv, group, n]
        torch.bmm(query, k[begin:end].float().permute(1, 2, 0), out=logits)
        scores[begin:end] = logits.softmax(-1).mean((0, 1))
    return scores


def ragged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_segments: Ragged,
    k_segments: Ragged,
    *,
    causal: bool = True,
    scale: float | None = None,
    k_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention within each segment; query heads share key heads in groups.

    Causal is aligned bottom-right: the last query sees all keys, each earlier one sees one less.
    A query that sees no key gives 0.
    """
    if k_index is not None:
        k, v = gather_rows(k_index, k, v)
    parts, a, c = [q[:0]], 0, 0
    for (queries, keys), alike in groupby(zip(q_segments.lengths, k_segments.lengths, strict=True)):
        n = len(list(alike))  # consecutive segments of equal shape are one call, on views
        b, d = a + n * queries, c + n * keys
        key, value = (x[c:d].unflatten(0, (n, keys)) for x in (k, v))
        query = q[a:b].unflatten(0, (n, queries))
        parts.append(attend(query, key, value, causal, scale).flatten(0, 1))
        a, c = b, d
    return parts[1] if len(parts) == 2 else torch.cat(parts)


def ragged_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor,
    *,
    starts: Sequence[int] | torch.Tensor | None = None,
    max_length: int | None = None,
    scale: float | None = None,
    k_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query per sequence over its own rows of a cache; 0 for a sequence without.

    With lengths on the device only the first `max_length` rows of a sequence are seen.
    """
    if k_index is not None:
        k_cache, v_cache = gather_rows(k_index, k_cache, v_cache)
    if starts is None:
        starts = back_to_back(lengths)
    # Seen as [B, group, Hkv, D]: the query heads of a group are queries of one key head.
    q = q.unflatten(1, (k_cache.shape[1], -1)).transpose(1, 2)
    if isinstance(lengths, torch.Tensor):
        columns = len(k_cache) if max_length is None else min(max_length, len(k_cache))
        ranges = lengths, torch.as_tensor(starts), columns
        out = attend_unread(q, k_cache, v_cache, *ranges, scale)
    else:
        out = attend_ranges(q, k_cache, v_cache, lengths, [int(start) for start in starts], scale)
    return out.transpose(1, 2).flatten(1, 2)


def _take_best(ranks: torch.Tensor, segments: Ragged, keep: Sequence[int]) -> torch.Tensor:
    """Packed rows of the `keep[s]` largest of each line `[B, N]`; the lowest column wins ties.

    Padding columns hold the smallest integer; the sort is stable, so they come last.
    """
    order = ranks.sort(dim=1, descending=True, stable=True).indices
    rows = _take_first(order + segments.cu_seqlens[:-1, None], keep)
    return rows.int().sort().values  # one sort serves all segments, which are in order


def _with_rows(
    index: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The index alone, or with the rows of the tensors to gather from if there are any."""
    return (index, gather_rows(index, *tensors)) if tensors else index


def _take_first(rows: torch.Tensor, keep: Sequence[int]) -> torch.Tensor:
    """The first `keep[s]` entries of each line s, packed."""
    kept = Ragged.from_lengths(keep, rows.device)
    if kept.uniform_length is not None:
        return rows[:, : kept.uniform_length].flatten()
    return rows[kept.cells]


def _word(value: int | torch.Tensor, device: torch.device) -> torch.Tensor:
    """`[1]` int64 on the device; an int is written by a fill, which never waits for it."""
    if isinstance(value, torch.Tensor):
        return value.long()
    return torch.full((1,), value, dtype=torch.int64, device=device)
