"""Oracles: every op implemented again, as plain loops over NumPy fp64 and Python integers.

Nothing here is fast, and nothing is shared with `kernels/`, so that a mistake there is not
repeated here. Segments are host lengths; selections return lists of packed rows.
"""

import math
from itertools import accumulate

import numpy as np

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # splitmix64's finalizer


def philox_4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds of Philox-4x32 on one counter, in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low_product, high_product = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (high_product >> 32) ^ c1 ^ k0,
            high_product & MASK,
            (low_product >> 32) ^ c3 ^ k1,
            low_product & MASK,
        )
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def random_words(row: int, seed: int, image_hash: int, stream: int) -> tuple[int, int]:
    """The first and the second word of one row."""
    pair = []
    for c3 in (stream, stream | 0x80000000):
        counter = (row // 4, image_hash & MASK, (image_hash >> 32) & MASK, c3)
        pair.append(philox_4x32(counter, (seed & MASK, (seed >> 32) & MASK))[row % 4])
    return pair[0], pair[1]


def random_select(lengths, keep, seed, hashes, stream) -> list[int]:
    picks = []
    for start, n, k, h in zip(accumulate(lengths, initial=0), lengths, keep, hashes, strict=False):
        words = [random_words(row, seed, h, stream) for row in range(n)]
        best = sorted(range(n), key=lambda row: (-words[row][0], -words[row][1], row))
        picks += sorted(start + row for row in best[:k])
    return picks


def compact(picks, visual, lengths) -> tuple[list[int], list[int], list[int]]:
    """Tokens that stay, where picked ones are among them, and cuts, from one token to the next."""
    stay, now, cuts, token = [], [], [0], 0
    for length in lengths:
        for _ in range(length):
            picked = token in visual and visual.index(token) in picks
            if picked:
                now.append(len(stay))
            if picked or token not in visual:
                stay.append(token)
            token += 1
        cuts.append(len(stay))
    return stay, now, cuts


def topk_select(scores, lengths, keep) -> list[int]:
    """`scores`: Python floats; they hold every fp16, bf16, fp32 and fp64 value exactly."""
    picks = []
    for start, n, k in zip(accumulate(lengths, initial=0), lengths, keep, strict=False):

        def worst_last(row):
            score = scores[row]
            return (math.isnan(score), 0.0 if math.isnan(score) else -score, row)

        picks += sorted(sorted(range(start, start + n), key=worst_last)[:k])
    return picks


def cosine_distances(x: np.ndarray) -> np.ndarray:
    """1 - cos of every pair of rows in fp64, cos 0 for zero rows and rows shorter than 2^-63; NaN
    where either row is not finite."""
    n = len(x)
    distance = np.full((n, n), np.nan)
    with np.errstate(over="ignore"):
        # A row counts as not finite when its squared norm is not, in fp32.
        finite = [bool(np.isfinite(np.square(row.astype(np.float32)).sum())) for row in x]
    for i in range(n):
        for j in range(n):
            if finite[i] and finite[j]:
                norms = [math.sqrt(float(x[row] @ x[row])) for row in (i, j)]
                cosine = float(x[i] @ x[j]) / math.prod(norms) if min(norms) >= 2**-63 else 0.0
                distance[i, j] = 1.0 - cosine
    return distance


def diversity_order(x: np.ndarray, k: int, weights) -> list[int]:
    """The greedy max-min picks of one segment, in pick order, each step from scratch."""
    distance = cosine_distances(x)
    weighs = [0 <= weight < math.inf for weight in weights]
    finite = [i for i in range(len(x)) if weighs[i] and not np.isnan(distance[i, i])]
    broken = [i for i in range(len(x)) if i not in finite]
    picks: list[int] = []
    while len(picks) < min(k, len(finite)):
        best, best_gap = -1, -math.inf
        for i in finite:
            if i in picks:
                continue
            others = picks or [j for j in finite if j != i]
            gap = min((weights[i] * distance[i, j] for j in others), default=math.inf)
            if gap > best_gap:
                best, best_gap = i, gap
        picks.append(best)
    return picks + broken[: k - len(picks)]


def diversity_select(x: np.ndarray, lengths, keep, weights=None) -> list[int]:
    """Picks in pick order, segment after segment; `weights`: Python floats, 1 for all if None."""
    order, weights = [], [1.0] * len(x) if weights is None else weights
    for start, n, k in zip(accumulate(lengths, initial=0), lengths, keep, strict=False):
        own = slice(start, start + n)
        order += [start + i for i in diversity_order(x[own], k, weights[own])]
    return order


def gain_weights(weights) -> list[float]:
    """Weights in fp32: 0 for those below 2^-100, NaN for those that are none."""
    weights = [float(np.float32(w)) for w in weights]
    return [math.nan if not abs(w) < 2.0**100 else w if w >= 2.0**-100 else 0.0 for w in weights]


def gain_order(x: np.ndarray, weights, k: int, gain) -> list[int]:
    """Picks in pick order by `gain(cosine, picks, j)`, from scratch each time, times the weight."""
    cosine, ranks, picks = 1.0 - cosine_distances(x), gain_weights(weights), []
    for i in range(len(x)):
        if cosine[i, i] > 0.5:
            cosine[i, i] = 1.0
    usable = [i for i in range(len(x)) if not math.isnan(cosine[i, i] + ranks[i])]
    broken = [i for i in range(len(x)) if i not in usable]
    while len(picks) < min(k, len(usable)):
        gains = {i: ranks[i] * gain(cosine, picks, i) for i in usable if i not in picks}
        best = max(gains.values())
        picks.append(next(i for i in gains if gains[i] >= best * (1 - 2**-17)))
    return picks + broken[: k - len(picks)]


def determinant_gain(cosine: np.ndarray, picks, j: int) -> float:
    """By how much row j multiplies the determinant of the rows picked, as far as they have one."""
    basis: list[int] = []
    for row in [*picks, j]:
        both = [*basis, row]
        ratio = np.linalg.det(cosine[np.ix_(both, both)]) / np.linalg.det(
            cosine[np.ix_(basis, basis)]
        )
        gain = ratio if ratio > 2**-13 else 0.0
        if gain:
            basis.append(row)
    return gain


def coverage_gain(cosine: np.ndarray, picks, j: int) -> float:
    """How much better all rows are covered with row j."""
    total = 0.0
    for i in range(len(cosine)):
        if not math.isnan(cosine[i, i]):
            covered = max([0.0, *(cosine[i, s] for s in picks)])
            total += max(0.0, cosine[i, j] - covered)
    return total if total > 2**-20 * len(cosine) else 0.0


def select_by_gain(x: np.ndarray, weights, lengths, keep, gain) -> list[int]:
    """Picks in pick order, segment after segment."""
    order = []
    for start, n, k in zip(accumulate(lengths, initial=0), lengths, keep, strict=False):
        rows = slice(start, start + n)
        order += [start + i for i in gain_order(x[rows], weights[rows], k, gain)]
    return order


def dpp_select(x: np.ndarray, quality, lengths, keep) -> list[int]:
    squares = [np.float32(q) ** 2 for q in np.asarray(quality, np.float32)]
    return select_by_gain(x, squares, lengths, keep, determinant_gain)


def coverage_select(x: np.ndarray, weights, lengths, keep) -> list[int]:
    return select_by_gain(x, weights, lengths, keep, coverage_gain)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def last_query_scores(q: np.ndarray, k: np.ndarray, lengths, scale) -> np.ndarray:
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    scores = np.zeros(len(k))
    for s, (start, n) in enumerate(zip(accumulate(lengths, initial=0), lengths, strict=False)):
        for h in range(heads if n else 0):
            logits = np.array([scale * (q[s, h] @ k[start + j, h // group]) for j in range(n)])
            scores[start : start + n] += _softmax(logits) / heads
    return scores


def attention(q, k, v, q_lengths, k_lengths, causal, scale, k_index=None) -> np.ndarray:
    """One query, one head at a time; bottom-right causal, 0 where no key is seen."""
    if k_index is not None:
        k, v = k[list(k_index)], v[list(k_index)]
    group = q.shape[1] // k.shape[1]
    out = np.zeros(q.shape)
    q_starts, k_starts = accumulate(q_lengths, initial=0), accumulate(k_lengths, initial=0)
    for a, nq, b, nk in zip(q_starts, q_lengths, k_starts, k_lengths, strict=False):
        for i in range(nq):
            seen = min(nk, i + nk - nq + 1) if causal else nk
            for h in range(q.shape[1] if seen > 0 else 0):
                keys, values = k[b : b + seen, h // group], v[b : b + seen, h // group]
                out[a + i, h] = _softmax(scale * (keys @ q[a + i, h])) @ values
    return out


def decode(q, k, v, starts, lengths, scale) -> np.ndarray:
    """One query per sequence over rows `start … start + length - 1`."""
    out = np.zeros(q.shape)
    for s, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        rows = slice(start, start + n)
        out[s] = attention(q[s : s + 1], k[rows], v[rows], [1], [n], False, scale)[0]
    return out


def image_hash(words, grid=(0, 0, 0)) -> int:
    """`words`: the bits of a picture's values in fp32; the hash as int64 has it."""
    t, h, w = grid
    total = mix64((t << 40) + (h << 20) + w, -1)
    total += sum(mix64(bfloat16_bits(word), i) for i, word in enumerate(words))
    return (total + 2**63) % 2**64 - 2**63


def bfloat16_bits(word: int) -> int:
    """An fp32 number, rounded to the nearest bfloat16, to the even one of two."""
    if word & 0x7FFFFFFF > 0x7F800000:
        return 0x7FC0  # every NaN
    kept, lost = divmod(word, 2**16)
    return kept + (lost > 0x8000 or (lost == 0x8000 and kept % 2 == 1))


def mix64(a: int, i: int) -> int:
    """splitmix64's finalizer."""
    z = (a + (i + 1) * GOLDEN) % 2**64
    for shift, multiplier in MIXING:
        z = (z ^ z >> shift) * multiplier % 2**64
    return z
