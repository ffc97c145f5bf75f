"""Checks of a result before it is timed: they return where it first differs, or an empty string.

They share nothing with `kernels/`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import oracles
import torch

Check = Callable[[object], str]
SAMPLED = 48  # queries of a sequence that are checked
TINY = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def exactly(expected: object) -> Check:
    """The same tensors, bit for bit."""

    def tensors(x: object) -> list[torch.Tensor]:
        return [x] if isinstance(x, torch.Tensor) else list(x)

    def check(got: object) -> str:
        for number, (a, b) in enumerate(zip(tensors(got), tensors(expected), strict=True)):
            if a.shape != b.shape:
                return f"tensor {number} has shape {tuple(a.shape)}, expected {tuple(b.shape)}"
            if len(differing := (a != b.to(a.device)).nonzero()):
                return f"tensor {number} differs first at {tuple(differing[0].tolist())}"
        return ""

    return check


def nearly(expected: torch.Tensor, allowed: float) -> Check:
    """Within `allowed` of fp64 values everywhere, and without NaN."""

    def check(got: torch.Tensor) -> str:
        if got.shape != expected.shape:
            return f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        error = (got.double() - expected).abs()
        worst = error.max().item() if error.numel() else 0.0
        within = worst <= allowed  # false for NaN
        return "" if within else f"off by {worst:.3g} at worst, {allowed:.3g} is allowed"

    return check


def selection(
    lengths: Sequence[int],
    keep: Sequence[int],
    ascending: bool = True,
    more: Callable | None = None,
) -> Check:
    """Any `keep[s]` distinct rows of each segment; `more` checks a segment's picks further."""

    def check(index: torch.Tensor) -> str:
        if len(index) != sum(keep):
            return f"{len(index)} rows, expected {sum(keep)}"
        starts = accumulate(lengths, initial=0)
        parts = zip(starts, lengths, index.long().split(list(keep)), strict=False)
        for segment, (start, n, picks) in enumerate(parts):
            if ((picks < start) | (picks >= start + n)).any() or len(picks.unique()) < len(picks):
                return f"segment {segment}: rows outside of it or repeated"
            if ascending and (picks.diff() <= 0).any():
                return f"segment {segment}: rows out of order"
            if more and (wrong := more(slice(start, start + n), picks - start)):
                return f"segment {segment}: {wrong}"
        return ""

    return check


def topk_index(scores: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
    """What top-k must return, int32."""
    rows = oracles.topk_select(scores.tolist(), lengths, keep)
    return torch.tensor(rows, dtype=torch.int32)


def image_hashes(
    pixels: torch.Tensor, grids: Sequence[tuple[int, int, int]] | None
) -> torch.Tensor:
    """The hash of every picture, int64, for pixels without NaN; in NumPy's unsigned integers."""
    bits = pixels.to(torch.bfloat16).view(torch.uint16).cpu().numpy().reshape(len(pixels), -1)
    if grids is None:
        pictures = [(row, (0, 0, 0)) for row in bits]
    else:
        ends = list(accumulate(t * h * w for t, h, w in grids))
        pictures = list(zip(np.split(bits, ends[:-1]), grids, strict=True))
    hashes = [
        oracles.mix64((t << 40) + (h << 20) + w, -1) + _hash_of_values(values.ravel())
        for values, (t, h, w) in pictures
    ]
    return torch.tensor([(x + 2**63) % 2**64 - 2**63 for x in hashes])


def _hash_of_values(bits: np.ndarray) -> int:
    total, step = 0, 2**20
    for start in range(0, len(bits), step):
        z = bits[start : start + step].astype(np.uint64)
        z += np.arange(start + 1, start + 1 + len(z), dtype=np.uint64) * np.uint64(oracles.GOLDEN)
        for shift, multiplier in oracles.MIXING:
            z = (z ^ z >> np.uint64(shift)) * np.uint64(multiplier)
        total += int(z.sum(dtype=np.uint64))
    return total


def farthest_each_time(
    features: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    slack: float = 2e-5,
    weights: torch.Tensor | None = None,
) -> Check:
    """Picks in order are greedy max-min on fp64 cosine distances, each up to `slack`.

    Roundings of fp32 distances stay below half of the slack; those of bf16 ones do not. weights: of
    a few units.
    """

    def replay(segment: slice, picks: torch.Tensor) -> str:
        x = torch.nn.functional.normalize(features[segment].double(), dim=1)
        distance = 1.0 - x @ x.T
        if weights is not None:
            distance *= weights[segment]
        nearest = distance.clone().fill_diagonal_(torch.inf).amin(0)
        limit, short = torch.full_like(nearest, torch.inf), []
        for pick in picks[:, None]:
            short.append(nearest.max() - nearest.index_select(0, pick))
            nearest = limit = torch.minimum(limit, distance.index_select(0, pick)[0])
        worst, step = torch.cat(short).max(0)
        near = f"pick {int(step)} is {worst.item():.2g} nearer than another row"
        return near if worst > slack else ""

    return selection(lengths, keep, ascending=False, more=replay)


def _greedy_by_gain(
    features: torch.Tensor,
    weights: torch.Tensor,
    lengths: Sequence[int],
    keep: Sequence[int],
    gains: Callable[[torch.Tensor, torch.Tensor], Iterator[tuple[torch.Tensor, float]]],
    floor: float,
) -> Check:
    """Picks in order have the largest gain each, for features and weights that are finite.

    gains: takes fp64 cosines and picks, and gives before each pick what every row gains but for its
    weight, and how far rounding may move that. Up to `floor` it may count as 0.
    """

    def replay(segment: slice, picks: torch.Tensor) -> str:
        x = torch.nn.functional.normalize(features[segment].double(), dim=1)
        weight = weights[segment].double().clamp(min=0.0)
        cosine = (x @ x.T).fill_diagonal_(1.0)
        left = torch.ones_like(weight, dtype=torch.bool)
        for step, (gain, slack) in enumerate(gains(cosine, picks)):
            most, least = (weight * (gain + moved).clamp(min=0.0) for moved in (slack, -slack))
            least[gain - slack <= floor] = 0.0
            pick = int(picks[step])
            if (best := least[left].max()) * (1 - 2**-16) > most[pick]:
                return f"pick {step} gains {most[pick]:.6g} at most, another row {best:.6g}"
            left[pick] = False
        return ""

    return selection(lengths, keep, ascending=False, more=replay)


def largest_determinant_each_time(
    features: torch.Tensor, quality: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]
) -> Check:
    """Picks in order are greedy ones of a determinantal point process, by elimination in fp64."""

    def gains(rest: torch.Tensor, picks: torch.Tensor) -> Iterator[tuple[torch.Tensor, float]]:
        for pick in picks.tolist():
            yield rest.diagonal().clone(), 2e-5
            if rest[pick, pick] > 2**-13:
                rest -= torch.outer(rest[pick], rest[pick]) / rest[pick, pick]

    return _greedy_by_gain(features, quality.float() ** 2, lengths, keep, gains, 2**-13)


def best_coverage_each_time(
    features: torch.Tensor, weights: torch.Tensor, lengths: Sequence[int], keep: Sequence[int]
) -> Check:
    """Picks in order are the greedy ones by weighted coverage, each gain anew in fp64."""

    def gains(cosine: torch.Tensor, picks: torch.Tensor) -> Iterator[tuple[torch.Tensor, float]]:
        n = len(cosine)
        covered = cosine.new_zeros(n)
        for pick in picks.tolist():
            yield (cosine - covered).clamp_(min=0.0).sum(1), n * 2**-20
            covered = torch.maximum(covered, cosine[pick])

    return _greedy_by_gain(features, weights, lengths, keep, gains, 2**-20 * len(features))


def attention_near(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    parts: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    causal: bool,
    plain: torch.Tensor,
) -> Check:
    """Errors on sampled queries, against fp64, are at most twice those of the `plain` answer.

    parts: where the queries and the keys of every sequence begin and end.
    """
    group, scale, rows, answers = q.shape[1] // k.shape[1], q.shape[2] ** -0.5, [], []
    for (a, b), (c, d) in parts:
        some = torch.linspace(0, b - a - 1, min(SAMPLED, b - a), device=q.device).long()
        keys, values = (x[c:d].double().repeat_interleave(group, 1) for x in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q[a + some].double(), keys) * scale
        if causal:
            later = torch.arange(d - c, device=q.device) > (some + (d - c) - (b - a))[:, None]
            logits = logits.masked_fill(later, -torch.inf)
        answers.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), values))
        rows.append(a + some)
    expected, rows = torch.cat(answers), torch.cat(rows)
    near = nearly(
        expected, 2 * (plain[rows].double() - expected).abs().max().item() + TINY[q.dtype]
    )

    def check(got: torch.Tensor) -> str:
        if got.shape != q.shape:
            return f"shape {tuple(got.shape)}, expected {tuple(q.shape)}"
        return near(got[rows]) or ("" if got.isfinite().all() else "not finite everywhere")

    return check


def exact_last_query_scores(
    q: torch.Tensor, k: torch.Tensor, parts: Sequence[tuple[int, int]], scale: float
) -> torch.Tensor:
    """In fp64, sequence by sequence."""
    scores, group = [], q.shape[1] // k.shape[1]
    for query, (a, b) in zip(q.double(), parts, strict=True):
        keys = k[a:b].double().repeat_interleave(group, 1)
        scores.append((torch.einsum("hd,nhd->hn", query, keys) * scale).softmax(-1).mean(0))
    return torch.cat(scores)
