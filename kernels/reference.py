"""The specification: what every op computes, in plain PyTorch. Read this file first.

These twins are the CPU path, the yardstick of the kernels, and usable on CUDA without a host read.
They take checked arguments; the op files beside this one validate. Rules all selections share:

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

# Distance matrices made at once; larger batches of large segments go in several turns.
_MAX_MATRIX_BYTES = 256 * 2**20
_SECOND_WORD = 0x80000000
_WORTH_HALVING = 256  # rows, on a CPU: fewer are as fast in one product as in several smaller ones
_LEAST_NORM = 2.0**-63  # its square is the smallest number fp32 holds with all bits
_BELOW_DISTANCES = -1e30  # and above the -infinity of rows picked already


def gather_rows(index: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Copy chosen rows of several packed tensors: `out[j] = x[index[j]]` for each x."""
    return tuple(x.index_select(0, index) for x in tensors)


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    keys: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    gather: Sequence[torch.Tensor] = (),
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Draw exactly `keep[s]` rows of each segment, uniformly and reproducibly.

    Row i of a segment draws word i % 4 of Philox-4x32-10 at counter
    (i // 4, key's low half, key's high half, stream); the largest words win. Equal words are
    ordered by a second word, drawn with the stream's top bit set, then by the lowest row.
    """
    device = segments.device
    if keys is None:
        keys = torch.arange(len(segments), device=device)
    seed, stream = _word(seed, device), _word(stream, device)

    columns = segments.max_seqlen
    counter = torch.broadcast_tensors(
        torch.arange((columns + 3) // 4, device=device),
        (keys & 0xFFFFFFFF)[:, None],
        ((keys >> 32) & 0xFFFFFFFF)[:, None],
        torch.stack((stream, stream | _SECOND_WORD))[:, :, None],
    )  # each [2, B, ceil(N / 4)]
    words = torch.stack(philox_4x32(torch.stack(counter), seed).unbind(0), dim=-1)
    first, second = words.flatten(2)[:, :, :columns]
    ranks = ((first - 2**31) << 32) + second  # the pair, ordered as one signed integer
    if segments.uniform_length is None:
        ranks.masked_fill_(~segments.live, torch.iinfo(torch.int64).min)
    return _and_rows(_take_best(ranks, segments, keep), gather)


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
    return _and_rows(_take_best(segments.pad(ranks, lowest), segments, keep), gather)


@torch.no_grad()
def diversity_select(
    features: torch.Tensor, segments: Ragged, keep: Sequence[int], *, return_order: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick rows greedily so that each is as far as possible from those already picked.

    Distance is d(i, j) = 1 - cos(x_i, x_j) in fp32, whatever the input dtype. The first pick is
    the row whose nearest other row is farthest; each next one has the largest distance to its
    nearest picked row. A zero row has cosine 0 to all, and so has one whose squared norm fp32 does
    not hold in full. A row whose squared norm is not finite ranks below all finite ones and changes
    nobody's distances.
    """
    picks = [segments.cu_seqlens.new_empty(0)]
    at_once = max(1, _MAX_MATRIX_BYTES // max(1, 4 * segments.max_seqlen**2))
    for first in range(0, len(segments), at_once):
        turn = slice(first, first + at_once)
        if steps := max(keep[turn]):
            cut = Ragged.from_lengths(segments.lengths[turn], segments.device)
            start = segments.offsets[first]
            order = greedy(*distances(features[start : start + cut.total], cut), steps)
            picks.append(_take_first(order + (cut.cu_seqlens[:-1, None] + start), keep[turn]).int())
    order = torch.cat(picks)
    index = order.sort().values
    return (index, order) if return_order else index


def distances(features: torch.Tensor, segments: Ragged) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine distances within each segment, and how far a row may count as being at most.

    Returns the distances `[B, N, N]` with N the longest segment, and the limits `[B, N]`: infinity
    for a finite row, less than every distance for one that is not, -infinity where there is no row.
    """
    x = features.float()
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    finite = norm.isfinite()
    directed = finite & (norm >= _LEAST_NORM)
    x = (x / norm).masked_fill_(~directed, 0.0)
    # What is not finite, or not there, is infinitely far from every other row.
    ceiling = torch.where(finite, 1.0, torch.inf)
    distance = x.new_full((len(segments), segments.max_seqlen, segments.max_seqlen), torch.inf)
    # One product per segment, so its rounding cannot depend on the rest of the batch; written into
    # place, which also keeps autocast out.
    for matrix, (begin, end) in zip(distance, pairwise(segments.offsets), strict=True):
        _fill_distances(x[begin:end], ceiling[begin:end], matrix[: end - begin, : end - begin])
    limit = torch.where(finite, torch.inf, _BELOW_DISTANCES).squeeze(1)
    return distance, segments.pad(limit, -torch.inf)


def _fill_distances(x: torch.Tensor, ceiling: torch.Tensor, out: torch.Tensor) -> None:
    """`out[i, j] = ceiling[i] - x[i] · x[j]`; of two halves the products serve twice."""
    n = len(x)
    if n < _WORTH_HALVING or x.device.type != "cpu":
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
    """Pick order `[B, steps]` (int64 columns) from `distances`; overwrites both arguments."""
    batch, columns = limit.shape
    own = distance.diagonal(dim1=1, dim2=2)
    own.fill_(torch.inf)
    nearest = torch.minimum(distance.amin(1), limit)
    own.fill_(-torch.inf)  # a picked row falls out of the race by its own entry

    rows = distance.flatten(0, 1)
    first_row = torch.arange(0, batch * columns, columns, device=limit.device)
    order = first_row.new_empty(steps, batch)
    pursue = _pursue_numpy if limit.device.type == "cpu" else _pursue
    pursue(rows, first_row, nearest, limit, order)
    return order.T


def _pursue(
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


def _pursue_numpy(*tensors: torch.Tensor) -> None:
    """`_pursue` on CPU memory, 4 to 5 times faster: a step costs about 1 µs instead of 5."""
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
    # One product per segment, and into place, for the reasons given in `distances`.
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
        n = len(list(alike))  # neighbours of equal shape are one call, on views
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
    """Attention of one query per sequence over its own rows of a cache; without rows it gives 0.

    Of lengths on the device only `max_length` rows are seen, by default as many as there are.
    """
    if k_index is not None:
        k_cache, v_cache = gather_rows(k_index, k_cache, v_cache)
    if starts is None:
        starts = back_to_back(lengths)
    # The heads of a group are so many queries of one key head.
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

    Columns beyond a segment hold the smallest integer: sorting is stable, so they come last.
    """
    order = ranks.sort(dim=1, descending=True, stable=True).indices
    rows = _take_first(order + segments.cu_seqlens[:-1, None], keep)
    return rows.int().sort().values  # segments follow one another, so one sort serves all


def _and_rows(
    index: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The picks, with the rows of some tensors where these were asked for."""
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
