"""Diversity selection: DivPrune's greedy, as published, as a good plain loop, and as ours.

- textbook: as the method is published, every step gathers the distances of all rows picked so far
  and takes the minimum over them again, picture by picture;
- running minimum: one minimum with the newest row's distances per step; also over all pictures at
  once, where they are of one length.

All of them in fp32, whatever the features are, because in bf16 the published loop picks other rows
every time its roundings change; it is also timed in the model's own dtype, as published, where only
the number of its picks is checked. Every other way's picks are replayed in fp64: each must be as
far from the picks before it as any row still there, up to rounding.

    python bench/bench_diversity.py --help
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from harness import Case, Way, main
from parity import Check, farthest_each_time
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, diversity_select

CASES = [  # workload, share kept; on a CPU the small ones
    *(("llava b1", 0.1), ("llava b1", 0.5), ("llava b8", 0.1), ("llava b8", 0.5)),
    *(("llava b32", 0.1), ("qwen 1k", 0.1), ("qwen 4k", 0.1), ("qwen 4k", 0.5)),
    *(("qwen mix b8", 0.25), ("qwen 16k", 0.1)),
]
MOST_PAIRS_ON_CPU = 3_000_000
MOST_PUBLISHED_STEPS = 2048  # the published loop reads k^2 / 2 rows: some seconds beyond

Pick = Callable[[torch.Tensor, int], torch.Tensor]


def distances(features: torch.Tensor) -> torch.Tensor:
    """Of one picture or several, the diagonal infinite: no row is its own neighbour."""
    x = features / features.norm(dim=-1, keepdim=True)
    distance = 1.0 - x @ x.mT
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distance


def textbook(distance: torch.Tensor, k: int) -> torch.Tensor:
    """Pick order; the diagonal bars a second pick."""
    picks = torch.empty(k, dtype=torch.int64, device=distance.device)
    picks[:1] = distance.amin(0).argmax(0, keepdim=True)
    distance.fill_diagonal_(-torch.inf)
    for step in range(1, k):
        gathered = distance.index_select(0, picks[:step])
        picks[step : step + 1] = gathered.amin(0).argmax(0, keepdim=True)
    return picks


def running_minimum(distance: torch.Tensor, k: int) -> torch.Tensor:
    return together(distance[None], k, _step)[0]


def _step(nearest: torch.Tensor, rows: torch.Tensor, first: torch.Tensor):
    """One pick of each picture, and the minima with its distances."""
    pick = nearest.argmax(1)
    return pick, torch.minimum(nearest, rows.index_select(0, pick + first))


def together(distance: torch.Tensor, k: int, step: Callable = _step) -> torch.Tensor:
    """The running minimum of pictures of one length, `[B, n, n]`, at once."""
    batch, n = distance.shape[:2]
    picks = torch.empty(batch, k, dtype=torch.int64, device=distance.device)
    first = torch.arange(0, batch * n, n, device=distance.device)
    pick = distance.amin(1).argmax(1)
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    rows = distance.flatten(0, 1)
    nearest = rows.index_select(0, pick + first)
    picks[:, 0] = pick
    for number in range(1, k):
        pick, nearest = step(nearest, rows, first)
        picks[:, number] = pick
    return picks


def per_picture(
    pick: Pick, segments: Ragged, keep: Sequence[int], dtype: torch.dtype | None = torch.float32
) -> Callable[[torch.Tensor], torch.Tensor]:
    def loop(features: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                pick(distances(features[a:b].to(dtype)), k) + a
                for (a, b), k in zip(pairwise(segments.offsets), keep, strict=True)
            ]
        )

    return loop


def batched(
    segments: Ragged, keep: Sequence[int], step: Callable = _step
) -> Callable[[torch.Tensor], torch.Tensor]:
    starts = segments.cu_seqlens[:-1, None]

    def loop(features: torch.Tensor) -> torch.Tensor:
        x = segments.pad(features.float(), 0.0)
        return (together(distances(x), keep[0], step) + starts).flatten()

    return loop


def as_many(keep: Sequence[int]) -> Check:
    return lambda got: "" if len(got) == sum(keep) else f"{len(got)} picks, not {sum(keep)}"


def case(w: Workload, share: float, device: str) -> Case:
    dtype, segments, keep = dtype_for(device), Ragged.from_lengths(w.lengths, device), w.keep(share)

    def make(seed: int) -> tuple[torch.Tensor]:
        return (normal(seed, w.rows, w.dim, device=device, dtype=dtype),)

    def ours(features: torch.Tensor) -> torch.Tensor:
        return diversity_select(features, segments, keep)

    def selected(inputs: tuple[torch.Tensor]) -> Check:
        """Ours come by row, so the gate asks again, in pick order, and for the same rows."""
        index, order = diversity_select(*inputs, segments, keep, return_order=True)

        def check(got: torch.Tensor) -> str:
            if not (torch.equal(got, index) and torch.equal(got, order.sort().values)):
                return "the rows by number are not those in pick order"
            return farthest_each_time(*inputs, w.lengths, keep)(order)

        return check

    short = max(keep) <= MOST_PUBLISHED_STEPS
    too_long = f"more than {MOST_PUBLISHED_STEPS} steps"
    loops = {"textbook": textbook, "running minimum": running_minimum}
    ways = [Way("vtfast", ours, "vtfast", selected)]
    for name, pick in loops.items():
        call = per_picture(pick, segments, keep)
        role = "eager" if pick is textbook else "fair"
        if pick is textbook and not short:
            ways.append(Way(name, None, role, missing=too_long))
        else:
            ways.append(Way(name, call, role))
    if dtype != torch.float32 and short:
        native = per_picture(textbook, segments, keep, dtype)
        name = f"textbook in {str(dtype).removeprefix('torch.')}"
        ways.append(Way(name, native, "fair", lambda inputs: as_many(keep)))
    if segments.uniform_length is not None:
        ways.append(Way("running minimum, batched", batched(segments, keep), "fair"))
        if (w.name, share) in (("llava b8", 0.1), ("qwen 4k", 0.1)):
            name = "running minimum, compiled steps"
            ways.append(
                Way(name, lambda compile: batched(segments, keep, compile(_step)), "compiled")
            )
    pairs = sum(n * n for n in w.lengths)
    picked = sum(n * k for n, k in zip(w.lengths, keep, strict=True))
    return Case(
        name=f"{w.name}, keep {share:.0%}",
        shape=f"{len(w.lengths)} pictures, {w.rows} x {w.dim} -> {sum(keep)}",
        dtype=dtype,
        make=make,
        ways=ways,
        gate=lambda inputs: farthest_each_time(*inputs, w.lengths, keep),
        nbytes=w.rows * w.dim * dtype.itemsize + 4 * (pairs + picked),
        flops=2 * pairs * w.dim,
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for name, share in CASES:
        (w,) = workloads(tiny, name)
        if device == "cuda" or sum(n * n for n in w.lengths) <= MOST_PAIRS_ON_CPU:
            yield case(w, share, device)


if __name__ == "__main__":
    main("diversity", cases)
