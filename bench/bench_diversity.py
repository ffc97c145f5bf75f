"""Diversity selection: DivPrune's greedy loop as published, a faster plain loop, and vtfast's op.

The published loop ("textbook") takes, at every step, the minimum over the distances to all rows
picked so far; "running minimum" updates it with those to the newest pick. All run in fp32; in bf16
the published loop picks other rows with every change of roundings, so only the number of its picks
is checked. The picks of all other variants are replayed in fp64: each must be as far from the picks
before it as any remaining row, up to rounding.

Determinants (CDPruner) and coverage (SCOPE) are checked alike. Their baselines compute every gain
anew at each pick, or update all gains by it; on a CPU in NumPy, which was faster than PyTorch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from harness import Case, Variant, compiled, main
from parity import Check, best_coverage_each_time, farthest_each_time, largest_determinant_each_time
from plain_gains import STEPS, covered, covered_more, factorised, one_by_one, picked, solved
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, coverage_select, diversity_select, dpp_select

CASES = [  # workload, share kept; on a CPU the small ones
    *(("llava b1", 0.1), ("llava b1", 0.5), ("llava b8", 0.1), ("llava b8", 0.5)),
    *(("llava b32", 0.1), ("qwen 1k", 0.1), ("qwen 4k", 0.1), ("qwen 4k", 0.5)),
    *(("qwen 4k", 0.64), ("qwen mix b8", 0.25), ("qwen 16k", 0.1), ("qwen 16k", 0.64)),
]
MOST_PAIRS_ON_CPU = 3_000_000
MOST_PUBLISHED_STEPS = 2048  # the published loop reads k^2 / 2 rows; more steps would take seconds


def distances(features: torch.Tensor) -> torch.Tensor:
    """Distances in one picture or several; infinite diagonal: no row is its own neighbour."""
    x = features / features.norm(dim=-1, keepdim=True)
    distance = 1.0 - x @ x.mT
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distance


def textbook(distance: torch.Tensor, k: int) -> torch.Tensor:
    """Pick order; the diagonal prevents a second pick."""
    picks = torch.empty(k, dtype=torch.int64, device=distance.device)
    picks[:1] = distance.amin(0).argmax(0, keepdim=True)
    distance.fill_diagonal_(-torch.inf)
    for step in range(1, k):
        gathered = distance.index_select(0, picks[:step])
        picks[step : step + 1] = gathered.amin(0).argmax(0, keepdim=True)
    return picks


def _step(nearest: torch.Tensor, rows: torch.Tensor, first: torch.Tensor):
    """One pick of each picture, and the minima with its distances."""
    pick = nearest.argmax(1)
    return pick, torch.minimum(nearest, rows.index_select(0, pick + first))


def running_minimum(distance: torch.Tensor, k: int, step: Callable = _step) -> torch.Tensor:
    """Pick order for pictures of one length at once, from `[B, n, n]` to `[B, k]`."""
    batch, n = distance.shape[:2]
    first = torch.arange(0, batch * n, n, device=distance.device)
    picks, rows = [distance.amin(1).argmax(1)], distance.flatten(0, 1)
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    nearest = rows.index_select(0, picks[0] + first)
    for _ in range(1, k):
        pick, nearest = step(nearest, rows, first)
        picks.append(pick)
    return torch.stack(picks, 1)


def case(w: Workload, share: float, device: str) -> Case:
    dtype, segments, keep = dtype_for(device), Ragged.from_lengths(w.lengths, device), w.keep(share)
    starts, parts = segments.cu_seqlens[:-1, None], list(pairwise(segments.offsets))

    def make(seed: int) -> tuple[torch.Tensor]:
        return (normal(seed, w.total, w.dim, device=device, dtype=dtype),)

    def loop(x: torch.Tensor, pick: Callable, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        picks = zip(parts, keep, strict=True)
        return torch.cat([pick(distances(x[a:b].to(dtype)), k) + a for (a, b), k in picks])

    def batched(x: torch.Tensor, step: Callable = _step) -> torch.Tensor:
        distance = distances(segments.pad(x.float(), 0.0))
        return (running_minimum(distance, keep[0], step) + starts).flatten()

    def in_pick_order(inputs: tuple[torch.Tensor]) -> Check:
        """vtfast's picks are ascending; their pick order, computed too, must hold the same rows."""
        index, order = diversity_select(*inputs, segments, keep, return_order=True)

        def check(got: torch.Tensor) -> str:
            if not (torch.equal(got, index) and torch.equal(got, order.sort().values)):
                return "the ascending picks are not the picks in pick order"
            return farthest_each_time(*inputs, w.lengths, keep)(order)

        return check

    def as_many(inputs: tuple[torch.Tensor]) -> Check:
        return lambda got: "" if len(got) == sum(keep) else f"{len(got)} picks, not {sum(keep)}"

    short = max(keep) <= MOST_PUBLISHED_STEPS
    published = (lambda x: loop(x, textbook)) if short else None
    missing = "" if short else f"more than {MOST_PUBLISHED_STEPS} steps"
    plain = lambda x: loop(x, lambda d, k: running_minimum(d[None], k)[0])  # noqa: E731
    variants = [
        Variant("vtfast", lambda x: diversity_select(x, segments, keep), "vtfast", in_pick_order),
        Variant("textbook", published, "eager", missing=missing),
        Variant("running minimum", plain, "fair"),
    ]
    if dtype != torch.float32 and short:
        name = f"textbook in {str(dtype).removeprefix('torch.')}"
        variants.append(Variant(name, lambda x: loop(x, textbook, dtype), "fair", as_many))
    if segments.uniform_length is not None:
        variants.append(Variant("running minimum, batched", batched, "fair"))
    if (w.name, share) in (("llava b8", 0.1), ("qwen 4k", 0.1)):
        step, name = compiled(_step), "running minimum, compiled steps"
        variants.append(Variant(name, lambda x: batched(x, step), "compiled"))
    pairs = sum(n * n for n in w.lengths)
    picked = sum(n * k for n, k in zip(w.lengths, keep, strict=True))
    return Case(
        name=f"{w.name}, keep {share:.0%}",
        shape=f"{len(w.lengths)} pictures, {w.total} x {w.dim} -> {sum(keep)}",
        dtype=dtype,
        make=make,
        variants=variants,
        gate=lambda inputs: farthest_each_time(*inputs, w.lengths, keep),
        nbytes=w.total * w.dim * dtype.itemsize + 4 * (pairs + picked),
        flops=2 * pairs * w.dim,
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for name, share in CASES:
        (w,) = workloads(tiny, name)
        if device == "cuda" or sum(n * n for n in w.lengths) <= MOST_PAIRS_ON_CPU:
            yield case(w, share, device)


def gain_cases(op: Callable, plain: dict[str, Callable], gate: Callable, device: str,
               tiny: bool) -> Iterator[Case]:  # fmt: skip
    for w in workloads(tiny, "llava b1", "llava b8", "qwen 1k"):
        yield _gain_case(op, plain, gate, w, device)


def _gain_case(op: Callable, plain: dict, gate: Callable, w: Workload, device: str) -> Case:
    segments, keep = Ragged.from_lengths(w.lengths, device), w.keep(0.5)
    dtype, where = dtype_for(device), (segments, keep)

    def make(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = normal(seed, w.total, w.dim, device=device, dtype=dtype)
        return x, normal(seed, w.total, device=device, dtype=torch.float32).sigmoid()

    def loop(gains: Callable, x: torch.Tensor, weight: torch.Tensor, **options) -> torch.Tensor:
        picks, weight = [], weight**2 if op is dpp_select else weight
        for (a, b), k in zip(pairwise(segments.offsets), keep, strict=True):
            given = distances(x[a:b].float()).fill_diagonal_(0.0), weight[a:b]
            if device == "cpu" and not options:
                given = [t.numpy() for t in given]
            picks += [a + i for i in picked(partial(gains, **options), *given, k)]
        return torch.tensor(picks, device=device)

    def replayed(inputs: tuple) -> Check:
        return gate(*inputs, w.lengths, keep)

    def in_pick_order(inputs: tuple) -> Check:
        index, order = op(*inputs, *where, return_order=True)
        check = replayed(inputs)
        return lambda got: check(order) if torch.equal(got, index) else "other rows"

    variants = [
        Variant("vtfast", lambda *x: op(*x, *where), "vtfast", in_pick_order),
        *(Variant(name, partial(loop, way), "eager" if name == ANEW else "fair")
          for name, way in plain.items()),
        *(Variant("compiled steps", partial(loop, way, step=compiled(STEPS[way])), "compiled")
          for way in plain.values() if way in STEPS),
    ]  # fmt: skip
    shape = f"{len(w.lengths)} pictures, {w.total} x {w.dim} -> {sum(keep)}"
    moved, flops = w.total * w.dim * dtype.itemsize, 2 * w.dim * sum(n * n for n in w.lengths)
    return Case(f"{w.name}, keep 50%", shape, dtype, make, variants, replayed, moved, flops)


ANEW, UPDATED = "every gain anew", "gains updated"
DETERMINANTS = {ANEW: solved, UPDATED: factorised}
COVERAGE = {ANEW: one_by_one, "all gains anew at once": covered, UPDATED: covered_more}
OPS = {
    "diversity": cases,
    "dpp": partial(gain_cases, dpp_select, DETERMINANTS, largest_determinant_each_time),
    "coverage": partial(gain_cases, coverage_select, COVERAGE, best_coverage_each_time),
}

if __name__ == "__main__":
    main(OPS, __doc__)
