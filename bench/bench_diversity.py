"""Time the diversity selection on the CPU: what does keeping a running minimum buy?

Four ways to the same picks, on the same distances:

- textbook, min: as the method is published, every step gathers the distances of all rows picked so
  far and takes `torch.min` over them again, image by image;
- textbook, amin: the same with `torch.amin`, which tracks no indices. The ratios are against this;
- running minimum: the strongest plain loop, one minimum with the newest row's distances per step;
- vtfast: the running minimum over all images at once, without temporaries.

"loop" is the picking alone; "all" includes the cosine distances, which dominate once it is fast.

    python bench/bench_diversity.py [--json FILE]
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vtfast.kernels import reference
from vtfast.ops import Ragged, diversity_select

TOKENS, DIM, KEEP = 576, 1024, 288
BATCHES = (1, 8)
BASELINE, OURS = "textbook, amin", "vtfast"


def first_pick(distance: torch.Tensor) -> torch.Tensor:
    """The row whose nearest other row is farthest; the diagonal is infinite."""
    return distance.min(0).values.argmax()


def textbook(distance: torch.Tensor, minimum: Callable) -> torch.Tensor:
    """Minimum over all picked rows, gathered anew each step; the diagonal bars a second pick."""
    picks = torch.empty(KEEP, dtype=torch.int64)
    picks[0] = first_pick(distance)
    distance = distance.clone().fill_diagonal_(-torch.inf)
    for step in range(1, KEEP):
        gathered = distance.index_select(0, picks[:step])
        picks[step] = minimum(gathered).argmax()
    return picks


def published(distance: torch.Tensor) -> torch.Tensor:
    return textbook(distance, lambda gathered: gathered.min(0).values)


def textbook_amin(distance: torch.Tensor) -> torch.Tensor:
    return textbook(distance, lambda gathered: gathered.amin(0))


def running_minimum(distance: torch.Tensor) -> torch.Tensor:
    picks = torch.empty(KEEP, dtype=torch.int64)
    picks[0] = first_pick(distance)
    distance = distance.clone().fill_diagonal_(-torch.inf)
    nearest = distance[picks[0]]
    for step in range(1, KEEP):
        picks[step] = nearest.argmax()
        nearest = torch.minimum(nearest, distance[picks[step]])
    return picks


def plain_distances(features: torch.Tensor) -> torch.Tensor:
    """Distances of one image, the diagonal infinite: a row is no neighbour of itself."""
    x = features / features.norm(dim=1, keepdim=True)
    return (1.0 - x @ x.T).fill_diagonal_(torch.inf)


PLAIN_WAYS = {
    "textbook, min": published,
    BASELINE: textbook_amin,
    "running minimum": running_minimum,
}


class Case:
    """One batch of images, and every way to select from it."""

    def __init__(self, batch: int):
        generator = torch.Generator().manual_seed(batch)
        self.batch = batch
        self.features = torch.randn(batch, TOKENS, DIM, generator=generator)
        self.segments = Ragged.from_lengths([TOKENS] * batch, "cpu")
        self.distance, self.limit = reference.distances(self.features.flatten(0, 1), self.segments)
        self.plain = self.distance.clone()
        self.plain.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        self.loops: dict[str, Callable[[], torch.Tensor]] = {
            name: lambda pick=pick: torch.stack([pick(d) for d in self.plain])
            for name, pick in PLAIN_WAYS.items()
        }
        self.loops[OURS] = lambda: reference.greedy(self.distance, self.limit.clone(), KEEP)
        self.selections: dict[str, Callable[[], object]] = {
            name: lambda pick=pick: [pick(plain_distances(x)) for x in self.features]
            for name, pick in PLAIN_WAYS.items()
        }
        self.selections[OURS] = lambda: diversity_select(
            self.features.flatten(0, 1), self.segments, [KEEP] * batch
        )

    def mismatches(self) -> list[str]:
        """The ways whose picks differ from the baseline's, with the first place they do."""
        expected = self.loops[BASELINE]()
        wrong = []
        for name, loop in self.loops.items():
            differing = (loop() != expected).nonzero()
            if len(differing):
                image, step = differing[0].tolist()
                wrong.append(f"batch {self.batch}: {name} differs at image {image}, step {step}")
        return wrong


def timed(call: Callable[[], object]) -> float:
    """Milliseconds a call takes, averaged over at least 50 ms: one busy neighbour costs ~5 ms."""
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.05:
        call()
        calls += 1
    return elapsed * 1e3 / calls


def summary(samples: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return {"median": statistics.median(samples), "p20": deciles[1], "p80": deciles[7]}


def measure(case: Case, repeats: int) -> list[dict]:
    """Alternate between the ways, so that a slow spell of the machine hits them all."""
    samples: dict[tuple[str, str], list[float]] = {}
    for repeat in track(range(repeats + 1), f"batch {case.batch}", console=Console(stderr=True)):
        for part, ways in (("loop", case.loops), ("all", case.selections)):
            for name, call in ways.items():
                milliseconds = timed(call)
                if repeat:  # the first round warms up
                    samples.setdefault((name, part), []).append(milliseconds)
    rows = []
    for name in case.loops:
        row: dict = {"batch": case.batch, "way": name}
        for part in ("loop", "all"):
            row[f"{part}_ms"] = summary(samples[name, part])
            slow = statistics.median(samples[BASELINE, part])
            row[f"{part}_ratio"] = slow / row[f"{part}_ms"]["median"]
        rows.append(row)
    return rows


def header(repeats: int) -> dict[str, str | int]:
    names = [line for line in _cpu_info() if line.startswith("model name")]
    return {
        "case": f"{TOKENS} tokens x {DIM}, fp32, keep {KEEP}",
        "cpu": names[0].split(":")[1].strip() if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": repeats,
        "command": " ".join(["python", *sys.argv]),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def three_digits(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def as_table(rows: list[dict], facts: dict) -> Table:
    table = Table(title=f"{facts['case']}\nms: median (p20-p80); x: times faster than {BASELINE}")
    for column in ("batch", "way", "loop ms", "loop x", "all ms", "all x"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        cells = [str(row["batch"]), row["way"]]
        for part in ("loop", "all"):
            ms = row[f"{part}_ms"]
            median, p20, p80 = (three_digits(ms[key]) for key in ("median", "p20", "p80"))
            cells.append(f"{median} ({p20}-{p80})")
            cells.append(f"{row[f'{part}_ratio']:.1f}")
        table.add_row(*cells, end_section=row["way"] == OURS)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds, at least 5")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error(f"--rounds is {options.rounds}, too few for a median; pass 5 or more")

    facts = header(options.rounds)
    console = Console()
    console.print("  ".join(f"{name}: {value}" for name, value in facts.items()), highlight=False)
    cases = [Case(batch) for batch in BATCHES]
    if wrong := [line for case in cases for line in case.mismatches()]:
        console.print("The picks differ, so no times:", *wrong, sep="\n")
        return 1
    rows = [row for case in cases for row in measure(case, options.rounds)]
    console.print(as_table(rows, facts))
    if options.json:
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
