"""The specification: what every op computes, in plain PyTorch. Read this file first.

These functions run on the CPU and wherever an op falls back to PyTorch (on CUDA without a read from
the device), and the tests compare the kernels with them; on the CPU random and top-k picks are made
by `_select_numpy.py`, in less time. Arguments are checked in the file of each op, not here. All
selections share these rules:

- The result is int32 row numbers of the packed tensor, ascending within each segment, exactly
  `keep[s]` distinct ones from segment `s`.
- Larger wins, ties go to the lowest row, -0.0 equals +0.0, NaN ranks below -inf.
- What is picked in a segment depends on that segment alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from math import inf

import torch

from . import _coverage, _determinant
from ._gains import NOT_FINITE, PICKED, ranks
from ._max_min import distances, greedy, greedy_by_rows
from ._mix64 import finalize_, hash_lines
from ._philox import philox_4x32
from ._sdpa import attend, attend_ranges, attend_unread, back_to_back
from ._staying import staying
from .ragged import Ragged

# What a selection, or the scores, may take beside arguments and result, with 16 MiB to spare for a
# few numbers a row: batches are processed in groups of segments, long segments in parts.
_MAX_BYTES = 240 * 2**20
_SECOND_WORD = 0x80000000


def gather_rows(index: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Copy chosen rows of several packed tensors: `out[j] = x[index[j]]` for each x."""
    return tuple(x.index_select(0, index) for x in tensors)


def compact(
    picks: torch.Tensor,
    visual: torch.Tensor,
    segments: Ragged,
    lengths: Sequence[int],
    places: Sequence[torch.Tensor | None] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Ragged, tuple[torch.Tensor, ...]]:
    """Drop those of the visual tokens that are not picked: all others stay, in their order.

    Returns which tokens stay, which of them were picked, where these are then, which tokens form
    which sequence then, and `x[stay]` of each vector of `places` (of 0, 1, 2, … for None).
    """
    after = Ragged.from_lengths(lengths, segments.device)
    stay, kept, now = staying(picks, visual, segments.total, after.total)
    then = tuple(stay if x is None else x.index_select(0, stay) for x in places)
    return stay, kept, now, after, then


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    image_hash: torch.Tensor | None = None,
    stream: int | torch.Tensor,
) -> torch.Tensor:
    """Draw exactly `keep[s]` rows of each segment, uniformly and reproducibly.

    Row i of a segment draws word i % 4 of Philox-4x32-10 at counter
    (i // 4, low half of the image hash, its high half, stream); the largest words win. Equal words
    are ordered by a second word, drawn with the highest bit of the stream set, then by lowest row.
    """
    device = segments.device
    if image_hash is None:
        image_hash = torch.arange(len(segments), device=device)
    seed, stream = _word(seed, device), _word(stream, device)

    def best(part: Ragged, group: slice) -> torch.Tensor:
        return _take_best(_random_ranks(part, seed, image_hash[group], stream), part, keep[group])

    return _select(segments, 96, best)


def _random_ranks(
    segments: Ragged, seed: torch.Tensor, image_hash: torch.Tensor, stream: torch.Tensor
) -> torch.Tensor:
    """Both random words of every row as one int64 `[B, N]`; the smallest int64 for padding."""
    device, columns = segments.device, segments.max_seqlen
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
    return ranks


def topk_select(scores: torch.Tensor, segments: Ragged, keep: Sequence[int]) -> torch.Tensor:
    """Pick the `keep[s]` best-scored rows of each segment."""
    scores = scores.detach()
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    scores = scores if integer == torch.int64 else scores.float()
    lowest = torch.iinfo(integer).min
    bits = (scores + 0.0).view(integer)  # -0.0 + 0.0 is +0.0
    # Flipping the value bits of negative numbers makes integers sort like the floats.
    ranks = torch.where(bits < 0, bits ^ torch.iinfo(integer).max, bits)
    ranks = ranks.masked_fill(scores.isnan(), lowest)

    def best(part: Ragged, group: slice) -> torch.Tensor:
        rows = ranks[segments.offsets[group.start] : segments.offsets[group.stop]]
        return _take_best(part.pad(rows, lowest), part, keep[group])

    return _select(segments, 40, best)


@torch.no_grad()
def diversity_select(
    features: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    weights: torch.Tensor | None = None,
    return_order: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick rows greedily so that each is as far as possible from those already picked.

    Distance is d(i, j) = 1 - cos(x_i, x_j) in fp32, whatever the input dtype. The first pick is
    the row whose nearest other row is farthest; each next one has the largest distance to its
    nearest picked row. A zero row has cosine 0 to all rows, and so has a row whose squared norm is
    subnormal in fp32. A row whose squared norm is not finite is picked after all finite rows and
    does not affect their distances.

    With weights, a row counts by its weight times its distance, in fp32. A row whose weight is
    negative, infinite or NaN is treated like one whose squared norm is not finite.
    """
    width = features.shape[1]

    def needed(length: int) -> int:
        """Bytes for the distances in a segment, for making them, and for its unit vectors."""
        return 6 * length**2 + 5 * length * width

    def pick(part: Ragged, rows: slice, steps: int) -> torch.Tensor:
        x, weight = features[rows], None if weights is None else weights[rows]
        if needed(part.max_seqlen) > _MAX_BYTES:  # then it is one segment
            return greedy_by_rows(x, steps, _MAX_BYTES, weight)
        return greedy(*distances(x, part, _MAX_BYTES, weight), steps)

    return _pick_greedily(segments, keep, needed, pick, return_order)


@torch.no_grad()
def dpp_select(
    features: torch.Tensor,
    quality: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick rows greedily so that the determinant of L, restricted to them, is as large as possible.

    L_ij = q_i q_j cos(x_i, x_j) in fp32. With picks P the gain of row j, by which it multiplies the
    determinant, is q_j² s_j: s_j = 1 - b S_PP⁻¹ bᵀ is its residual, S the cosines and b = S_jP.

    - A residual of at most 2^-13 counts as 0. So do that of a row that has cosine 0 to all rows in
      `diversity_select`, and a q² below 2^-100.
    - Gains of at least 1 - 2^-17 of the largest count as equal to it: the lowest row wins. When all
      gains are 0, the lowest rows not yet picked follow.
    - Rows that are not finite in the sense of `diversity_select`, and those whose q² in fp32 is NaN
      or at least 2^100, are picked after all others, lowest first.
    """
    width = features.shape[1]

    def needed(length: int) -> int:
        """As in `diversity_select`, and what the picks leave: at most as many vectors as rows."""
        return 12 * length**2 + 5 * length * width

    rank = ranks(quality.float().square())
    return _pick_by_gain(_determinant.greedy, features, rank, segments, keep, needed, return_order)


@torch.no_grad()
def coverage_select(
    features: torch.Tensor,
    weights: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    *,
    return_order: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Pick rows greedily so that every row of the segment has a similar one among them.

    With picks P, m_i = max(0, max over s in P of cos(x_i, x_s)) is how well row i is covered. The
    gain of row j is w_j Σ_i max(0, cos(x_i, x_j) - m_i), over all n rows of the segment, in fp32;
    the cosine of a row and itself is 1.

    - A sum of at most 2^-20 n counts as 0, and so does a weight below 2^-100. A row that has cosine
      0 to all rows in `diversity_select` has it to itself too.
    - Ties, and picks when all gains are 0: as in `dpp_select`.
    - Rows that are not finite in the sense of `diversity_select` cover nothing and are not covered.
      They, and those whose weight is NaN or at least 2^100 in magnitude, are picked after all
      others, lowest first; rows with such a weight are there to be covered all the same.
    """
    width = features.shape[1]

    def needed(length: int) -> int:
        """As in `diversity_select`, and for the gains of all rows at once."""
        return 10 * length**2 + 5 * length * width

    rank = ranks(weights)
    return _pick_by_gain(_coverage.greedy, features, rank, segments, keep, needed, return_order)


def _pick_by_gain(
    greedy: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    features: torch.Tensor,
    rank: torch.Tensor,
    segments: Ragged,
    keep: Sequence[int],
    needed: Callable[[int], int],
    return_order: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Picks of `greedy`, which takes distances, ranks and the number of picks."""

    def pick(part: Ragged, rows: slice, steps: int) -> torch.Tensor:
        distance, limit = distances(features[rows], part, _MAX_BYTES)
        # Finite is only the limit of a row that is not.
        padded = part.pad(rank[rows], PICKED).masked_fill(limit.isfinite(), NOT_FINITE)
        return greedy(distance, padded, steps)

    # On a CPU segments are picked from one by one, each no further than its own last pick by gain.
    alone = segments.device.type == "cpu"
    return _pick_greedily(segments, keep, (lambda _: inf) if alone else needed, pick, return_order)


def _pick_greedily(
    segments: Ragged,
    keep: Sequence[int],
    needed: Callable[[int], float],
    pick: Callable[[Ragged, slice, int], torch.Tensor],
    return_order: bool,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Picks of one group of segments after another, ascending, and if wanted in pick order.

    needed: bytes for a segment of this length. pick: gives the columns picked in a group, `[B,
    steps]` int64 in pick order, from its segments, which rows they are, and the number of picks.
    """
    picks = [segments.cu_seqlens.new_empty(0)]
    for part, group in _groups(segments, needed):
        start, steps = segments.offsets[group.start], max(keep[group], default=0)
        if steps:
            order = pick(part, slice(start, start + part.total), steps)
            order = order + (part.cu_seqlens[:-1, None] + start)
            picks.append(_take_first(order, keep[group]).int())
    order = torch.cat(picks)
    index = order.sort().values
    return (index, order) if return_order else index


@torch.no_grad()
def last_query_scores(
    q: torch.Tensor, k: torch.Tensor, segments: Ragged, *, scale: float
) -> torch.Tensor:
    """Attention that each sequence's last query pays to all its keys, averaged over heads, fp32."""
    scores = k.new_empty(len(k), dtype=torch.float32)
    q = (q.float() * scale).unflatten(1, (k.shape[1], -1))  # head h reads key head h // group
    at_once = max(1, _MAX_BYTES // (8 * k.shape[1:].numel()))  # keys whose copy in fp32 takes half
    # Products are of one segment, so their rounding cannot depend on the rest of the batch; with
    # `out=`, which autocast leaves alone.
    for query, (begin, end) in zip(q, pairwise(segments.offsets), strict=True):
        logits = q.new_empty(*query.shape[:2], end - begin)  # [Hkv, group, n]
        parts = zip(k[begin:end].split(at_once), logits.split(at_once, -1), strict=True)
        for keys, out in parts:
            torch.bmm(query, keys.float().permute(1, 2, 0), out=out)
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
    """Attention of one query per sequence over its own rows of a cache; 0 if it has no rows.

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
        ranges = lengths, torch.as_tensor(starts, device=lengths.device), columns
        out = attend_unread(q, k_cache, v_cache, *ranges, scale)
    else:
        out = attend_ranges(q, k_cache, v_cache, lengths, [int(start) for start in starts], scale)
    return out.transpose(1, 2).flatten(1, 2)


def image_hash(pixels: torch.Tensor, grid: torch.Tensor | None = None) -> torch.Tensor:
    """Hash each picture to 64 bits, so that random picks follow the picture and not its place.

    hash = Σ_i mix64(bits of bfloat16(pixel_i), i) + mix64(t·2⁴⁰ + h·2²⁰ + w, -1)        mod 2⁶⁴

    with i the number of the value inside its picture and (t, h, w) its grid, 0 without one. Values
    are rounded to bfloat16 (to nearest, ties to even), so that fp32 and bf16 pixels of one picture
    have one hash; NaN counts as 0x7FC0, because what it is rounded to depends on the device.
    """
    lines = pixels.flatten(0, -2) if pixels.ndim > 1 else pixels[:, None]
    number, images = len(lines), len(pixels if grid is None else grid)
    device = lines.device
    line, equal_share = torch.arange(number, device=device), number // max(1, images)
    if grid is None:
        line %= max(1, equal_share)  # of its picture
    else:
        grid = grid.long()
        per_image = grid.prod(1)
        image_of_line = torch.repeat_interleave(
            torch.arange(images, device=device), per_image, output_size=number
        )
        line -= (per_image.cumsum(0) - per_image)[image_of_line]
    total = hash_lines(lines, line)
    if grid is None:  # of a grid of zeros mix64 is 0
        return total.view(images, equal_share).sum(1)
    t, h, w = grid.unbind(1)
    packed = torch.add(w, h, alpha=2**20).add_(t, alpha=2**40)  # mixed as value number -1
    return finalize_(packed).index_add_(0, image_of_line, total)


def _select(
    segments: Ragged, cell_bytes: int, best: Callable[[Ragged, slice], torch.Tensor]
) -> torch.Tensor:
    """Rows that `best` picks, group by group; cell_bytes: what it needs for a cell it pads to."""
    picks = []
    for part, group in _groups(segments, lambda length: cell_bytes * length):
        start, rows = segments.offsets[group.start], best(part, group)
        picks.append(rows + start if start else rows)
    return picks[0] if len(picks) == 1 else torch.cat(picks)


def _groups(segments: Ragged, bytes_of: Callable[[int], float]) -> Iterator[tuple[Ragged, slice]]:
    """Split segments into consecutive groups of one or more, as many as `_MAX_BYTES` allows.

    bytes_of: what a segment of this length needs; in a group all are padded to the longest. Yields
    each group as a packed batch of its own, with the numbers of its segments.
    """
    cuts, longest = [0], 0
    for number, length in enumerate(segments.lengths):
        longest = max(longest, length)
        if number > cuts[-1] and (number + 1 - cuts[-1]) * bytes_of(longest) > _MAX_BYTES:
            cuts.append(number)
            longest = length
    for first, end in pairwise((*cuts, len(segments))):
        group, whole = slice(first, end), end - first == len(segments)
        lengths = segments.lengths[group]
        yield segments if whole else Ragged.from_lengths(lengths, segments.device), group


def _take_best(ranks: torch.Tensor, segments: Ragged, keep: Sequence[int]) -> torch.Tensor:
    """Packed rows of the `keep[s]` largest of each line `[B, N]`; the lowest column wins ties.

    Padding columns hold the smallest integer; the sort is stable, so they come last.
    """
    order = ranks.sort(dim=1, descending=True, stable=True).indices
    rows = _take_first(order + segments.cu_seqlens[:-1, None], keep)
    return rows.int().sort().values  # one sort serves all segments, which are in order


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
