"""Time to first token, decoding and memory of whole models, beside the same model natively shorter.

On CUDA LLaVA-1.5-7B and Qwen2.5-VL-7B in bf16, on a CPU a LLaVA of 16 layers of 1024 in fp32, with
random weights. Cases come in a fixed order, the most telling first. A case with wrong answers
(`model_parity.py` in tests/helpers) is red and not timed, and the exit code is 1. Pictures are
encoded beforehand. `break-even` cases find the number of visual tokens from which on a packed
prefill takes less time than an unpatched one.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import machine
import model_parity
import random_models
import report
import torch
from harness import Record, parser
from machine import clock_of, summary
from prefills import Prompted, counts, race, ratios
from random_models import MID, QWEN, Subject, encode, encoded_once, inputs_of, random_features
from report import FLASH, NATIVE, PACKED, UNPATCHED
from shapes import dtype_for

import vtfast
from vtfast import Plan

LADDER = {"cuda": (16, 32, 64, 128, 256, 512, 1024, 2048, 4096), "cpu": (16, 32, 64, 128, 256)}
TINY_LADDER = (8, 32)


@dataclass(frozen=True)
class Case:
    """One model, plan and batch; if `batch` and `tokens` are None, a search for the break-even."""

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
        grid = ((s, preset, keep) for keep in keeps for preset in presets for s in subjects)
        return (Case(s, preset, keep, batch, s.tokens) for s, preset, keep in grid)

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
        self.device, self.tiny, self.rounds = options.device, options.tiny, options.rounds
        self.steps, self.dtype = 1 if options.tiny else 16, dtype_for(options.device)
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
        model, batch = self.model(case.subject), min(case.batch, 2) if self.tiny else case.batch
        inputs = inputs_of(model, texts(batch), case.subject.size(case.tokens))
        return model, inputs, encode(model, inputs), Prompted(model, inputs, self.steps)

    def measure(self, case: Case, run: int) -> dict:
        """The row of a case."""
        row = {"op": "model", "case": case.name, "model": case.subject.name, "preset": case.preset,
               "keep": case.keep, "batch": case.batch, "tokens": case.tokens, "run": run,
               "dtype": str(self.dtype).removeprefix("torch."), "red": {}, "ways": {}}  # fmt: skip
        try:
            plan = self.plan(case)
            row["plan"] = str(plan)
            (self._break_even if case.batch is None else self._prefills)(case, plan, row)
        except torch.OutOfMemoryError as error:
            row["unmeasured"] = f"out of memory: {str(error)[:100]}"
        except (RuntimeError, ValueError, TypeError) as error:
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
            row["red"] = model_parity.disagreements(prompted, plan)
            if row["red"]:
                return
            variants = prompted.variants(plan)
            for name in report.VARIANTS:
                there = name in variants
                found = (
                    counts(variants[name], self.device) if there else {"missing": "not installed"}
                )
                row["ways"][name] = found
            taken = race(variants, self.rounds, self.device, self.steps, min(3, self.rounds))
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
            inputs, features = inputs_of(model, (64,), tokens), random_features(model, 1, tokens)
            prompted = Prompted(model, inputs)
            with encoded_once(model, inputs, features):
                wrong = model_parity.disagreements(prompted, plan)
                row["red"] |= {f"{tokens} tokens, {name}": why for name, why in wrong.items()}
                if wrong:
                    return
                variants = prompted.variants(plan)
                race(variants, 1, self.device)  # warms up
                taken = race(variants, self.rounds, self.device)
            times = {name: summary(found["ttft"]) for name, found in taken.items()}
            ratio = ratios(taken[PACKED]["ttft"], strongest(taken))
            row["points"].append({"tokens": tokens, "ttft_ms": times, "of_unpatched": ratio})
        ratios_by_size = [(p["tokens"], p["of_unpatched"]["median"]) for p in row["points"]]
        row["break_even"] = break_even(ratios_by_size)


def texts(batch: int) -> tuple[int, ...]:
    """Text tokens of every sample: 64, and in a batch from 16 to 112, so that lengths differ."""
    return (64,) if batch == 1 else tuple(16 + 96 * i // (batch - 1) for i in range(batch))


def strongest(taken: dict[str, dict[str, list[float]]]) -> list[float]:
    """The times of the faster unpatched attention."""
    unpatched = [taken[name]["ttft"] for name in (UNPATCHED, FLASH) if name in taken]
    return min(unpatched, key=lambda times: summary(times)["median"])


def break_even(points: Sequence[tuple[int, float]]) -> float | None:
    """Visual tokens from which on packed / unpatched stays below 1, interpolated over the logarithm
    of their number: the first number tried if it always is, None if it is not at the last."""
    losses = [i for i, (_, ratio) in enumerate(points) if ratio >= 1]
    if not losses:
        return float(points[0][0])
    if losses[-1] == len(points) - 1:
        return None
    (low, loss), (high, win) = points[losses[-1] : losses[-1] + 2]
    return low * (high / low) ** ((loss - 1) / (loss - win))


@torch.no_grad()  # as in `generate`; in inference mode some reads would not be counted
def main() -> int:
    options = parser(__doc__, rounds=7).parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)  # times on a CPU are of one thread
    subjects = random_models.TINY if options.tiny else random_models.SUBJECTS[options.device]
    chosen = (case for case in cases(subjects) if any(text in case.name for text in options.only))
    facts = machine.header(options.device) | {"flash_attn": machine.version("flash_attn")}
    record = Record(options.json, facts, {})
    record.measure("model", chosen, options.seconds, Bench(options).measure)
    return record.end("model")


if __name__ == "__main__":
    sys.exit(main())
