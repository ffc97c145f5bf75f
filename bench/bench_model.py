"""Whole models: time to first token, decoding, memory, beside the same model natively shorter.

    python bench/bench_model.py --json FILE          # goes on with what FILE holds already
    python bench/bench_model.py --profile --only "divprune 0.5"

On CUDA: LLaVA-1.5-7B and Qwen2.5-VL-7B of the true shapes, random weights, bf16. On a CPU: a LLaVA
of 16 layers of 1024, fp32. Cases come in a fixed order of value, both models in turn. Of each, the
answers are checked first (`prefills.disagreements`); where they are wrong the case is red, nothing
of it is timed, and the exit code is 1. Pictures are encoded beforehand, and how long that takes is
noted apart. `break-even` cases look for the number of visual tokens from which on a packed prefill
takes less time than an unpatched one.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import counts
import machine
import model_figures
import model_shapes
import torch
from harness import Record
from model_shapes import MID, QWEN, Subject, inputs_of, made_up
from models import encode, encoded_once
from prefills import (
    FLASH,
    NATIVE,
    PACKED,
    UNPATCHED,
    Prompted,
    available,
    disagreements,
    race,
    ratios,
)
from shapes import dtype_for
from timing import clock_of, summary

import vtfast
from vtfast import Plan

START = time.monotonic()
OP = "model"
LADDER = {"cuda": (16, 32, 64, 128, 256, 512, 1024, 2048, 4096), "cpu": (16, 32, 64, 128, 256)}
TINY_LADDER = (8, 32)


@dataclass(frozen=True)
class Case:
    """One model, plan and batch; `batch` and `tokens` None: a search for the break-even."""

    subject: Subject
    preset: str
    keep: float
    batch: int | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        what = "break-even" if self.batch is None else f"b{self.batch}, {self.tokens} tokens"
        return f"{self.subject.name}: {self.preset} {self.keep:g}, {what}"


def cases(subjects: Sequence[Subject]) -> Iterator[Case]:
    """Everything to measure, the most telling first."""
    both, core = ("divprune+random", "divprune"), (0.5, 0.25)

    def some(presets: Sequence[str], keeps: Sequence[float], batch: int) -> Iterator[Case]:
        for keep in keeps:
            for preset in presets:
                for s in subjects:
                    yield Case(s, preset, keep, batch, s.tokens)

    if MID in subjects:  # a CPU has little time
        yield from some(both, core, 1)
        yield from (Case(MID, "divprune+random", keep) for keep in core)
        yield from some(both[:1], core, 4)
        yield from some(both, (0.1,), 1)
        return
    yield from some(both, core, 8)
    yield from some(both, core, 1)
    yield from (Case(s, preset, keep) for keep in core for preset in both for s in subjects)
    yield from some(both, (0.1,), 8)
    yield from some(("fastv", "random"), core, 8)
    qwen = next(s for s in subjects if s.name == QWEN.name)
    yield from (Case(qwen, both[0], keep, 1, n) for n in (4096, 16384) for keep in core)
    yield from some(both[:1], core, 32)
    yield from some(both, (0.1,), 1)


class Bench:
    """Runs cases on one device; a model is built when a case first asks for it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.tiny = options.device, options.tiny
        self.rounds, self.steps = options.rounds, 1 if options.tiny else 16
        self.decoded = min(3, options.rounds)
        self.dtype = dtype_for(self.device)
        self._models: dict[str, Any] = {}

    def model(self, subject: Subject) -> Any:
        if subject.name not in self._models:
            self._models[subject.name] = subject.build(self.device, self.dtype)
        return self._models[subject.name]

    def plan(self, case: Case) -> Plan:
        """What `vtfast.patch` makes of the preset for this model."""
        with vtfast.patch(self.model(case.subject), case.preset, keep=case.keep) as handle:
            return handle.plan

    def prompted(self, case: Case) -> tuple[Any, dict, Any, Prompted]:
        model, batch = self.model(case.subject), case.batch
        if self.tiny:
            batch = min(batch, 2)
        tokens = case.subject.size(case.tokens)
        inputs = inputs_of(model, batch, tokens)
        # The tower of LLaVA takes pictures of one size, that of a tiny one too.
        return model, inputs, encode(model, inputs), Prompted(model, inputs, self.steps)

    def measure(self, case: Case, run: int) -> dict:
        """The row of a case."""
        row = {"op": OP, "case": case.name, "model": case.subject.name, "preset": case.preset,
               "keep": case.keep, "batch": case.batch, "tokens": case.tokens,
               "dtype": str(self.dtype).removeprefix("torch."), "run": run,
               "red": {}, "ways": {}}  # fmt: skip
        try:
            plan = self.plan(case)
            row["plan"] = str(plan)
            (self._break_even if case.batch is None else self._prefills)(case, plan, row)
        except torch.OutOfMemoryError as error:
            row["unmeasured"] = f"out of memory: {str(error)[:100]}"
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            row["red"]["vtfast"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
        return row

    def _prefills(self, case: Case, plan: Plan, row: dict) -> None:
        model, inputs, features, prompted = self.prompted(case)
        clock = clock_of(self.device)
        start = clock()
        encode(model, inputs)
        row["encode_ms"] = (clock() - start) * 1e3
        row["average"] = plan.average_tokens(case.tokens, len(model.model.language_model.layers))
        with encoded_once(model, inputs, features):
            row["red"] = disagreements(prompted, plan)
            if row["red"]:
                return
            ways = prompted.ways(plan)
            for name, way in ways.items():
                row["ways"][name] = {"missing": way} if isinstance(way, str) else {}
            able = available(ways)
            for name, way in able.items():
                row["ways"][name] |= counts.counts(way, self.device)
            taken = race(able, self.rounds, self.device, self.steps, self.decoded)
        unpatched = strongest(taken)
        for name, times in taken.items():
            row["ways"][name] |= {
                "ttft_ms": summary(times["ttft"]),
                "decode_ms": summary(times["decode"]),
                "of_native": ratios(times["ttft"], taken[NATIVE]["ttft"]),
                "of_unpatched": ratios(times["ttft"], unpatched),
            }

    def _break_even(self, case: Case, plan: Plan, row: dict) -> None:
        model, row["points"] = self.model(case.subject), []
        for tokens in TINY_LADDER if self.tiny else LADDER[self.device]:
            inputs, features = inputs_of(model, 1, tokens), made_up(model, 1, tokens)
            prompted = Prompted(model, inputs)
            with encoded_once(model, inputs, features):
                wrong = disagreements(prompted, plan)
                row["red"] |= {f"{tokens} tokens, {way}": why for way, why in wrong.items()}
                if wrong:
                    return
                able = available(prompted.ways(plan))
                race(able, 1, self.device)  # warms up
                taken = race(able, self.rounds, self.device)
            row["points"].append({
                "tokens": tokens,
                "ttft_ms": {name: summary(found["ttft"]) for name, found in taken.items()},
                "of_unpatched": ratios(taken[PACKED]["ttft"], strongest(taken)),
            })  # fmt: skip
        row["break_even"] = break_even(
            [(p["tokens"], p["of_unpatched"]["median"]) for p in row["points"]]
        )

    def profile(self, case: Case) -> str:
        """Who makes a packed prefill longer than the native one."""
        plan = self.plan(case)
        model, inputs, features, prompted = self.prompted(case)
        with encoded_once(model, inputs, features):
            ways = available(prompted.ways(plan))
            ways = {name: ways[name] for name in (PACKED, NATIVE)}
            race(ways, 1, self.device)
            found = counts.profiled(ways, self.device)
        return f"{case.name}\n{counts.contributors(found, PACKED, NATIVE)}"


def strongest(taken: dict[str, dict[str, list[float]]]) -> list[float]:
    """The times of the faster unpatched way."""
    unpatched = [taken[name]["ttft"] for name in (UNPATCHED, FLASH) if name in taken]
    return min(unpatched, key=lambda times: summary(times)["median"])


def break_even(points: Sequence[tuple[int, float]]) -> float | None:
    """Visual tokens from which on packed / unpatched stays below 1, between points in proportion to
    their logarithms; the first number tried if it never was above, None if it is at the end."""
    losses = [i for i, (_, ratio) in enumerate(points) if ratio >= 1]
    if not losses:
        return float(points[0][0])
    if losses[-1] == len(points) - 1:
        return None
    (low, loss), (high, win) = points[losses[-1] : losses[-1] + 2]
    return low * (high / low) ** ((loss - 1) / (loss - win))


def run(bench: Bench, chosen: Sequence[Case], seconds: float, record: Record) -> bool:
    """Measure what the record lacks; false where the time was up before the end."""
    left, longest = [], 0.0
    for case in chosen:
        if record.row(OP, case.name) is not None:
            continue
        begin = time.monotonic()
        if left or begin - START + longest > seconds:
            left.append(case.name)
            continue
        row = bench.measure(case, len(record.runs) - 1)
        record.put(row)
        record.save()
        longest = max(longest, time.monotonic() - begin)
        print(model_figures.verdict(row), file=sys.stderr, flush=True)
    record.left[OP] = left
    record.save()
    return not left


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="add to this file, not stdout")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="cases with one of these in their name",
    )
    parser.add_argument("--profile", action="store_true", help="who takes the time; times nothing")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return options


@torch.no_grad()  # as `generate` is; in inference mode some reads would not be counted
def main() -> int:
    options = _options()
    if options.device == "cpu":
        torch.set_num_threads(1)  # what a CPU's times are of
    subjects = model_shapes.TINY if options.tiny else model_shapes.SUBJECTS[options.device]
    chosen = [case for case in cases(subjects) if any(text in case.name for text in options.only)]
    bench = Bench(options)
    if options.profile:
        for case in chosen:
            if case.batch is not None:
                print(bench.profile(case), flush=True)
        return 0
    facts = machine.header(options.device) | {"flash_attn": machine.version("flash_attn")}
    record = Record(options.json, facts)
    record.begin({})
    finished = run(bench, chosen, options.seconds, record)
    print(model_figures.summary(record.rows, record.runs), file=sys.stderr)
    if not finished:
        print(f"stopped at its limit, left: {record.left[OP]}", file=sys.stderr)
    if options.json is None:
        print(json.dumps(record.as_json(), indent=1))
    return int(any(row["red"] for row in record.rows))


if __name__ == "__main__":
    sys.exit(main())
