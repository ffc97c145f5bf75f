"""What vtfast adds to a prefill and to a decoding step, beside the same model natively shorter.

A LLaVA with random weights, 16 layers of 1024, 576 visual tokens, on the CPU. In every round each
way runs once, in alternating order, and the ratios are taken within the round, of processor time
(of one thread by default): waiting for a turn on a busy machine does not count.

- unpatched: all tokens;
- native: the same model on sequences as short as the plan makes them, padded (`models.Shorter`);
- padded, packed: patched, in either layout.

Then the share of selection and gathering in a prefill, and the Python that is left: microseconds a
layer and a decoded token, on a model so small that nothing else takes time.

    python bench/bench_overhead.py [--json FILE] [--rounds 7] [--tiny]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import torch
from models import Shorter, encoded_once, prompts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import summary

import vtfast
from vtfast import Plan, Prune
from vtfast.prefill import TINY, MidSize

TEXTS = {1: (64,), 4: (16, 48, 80, 112)}
STEPS = 50
WAYS = ("unpatched", "native", "padded", "packed")


def plans(layers: int) -> dict[str, list[Prune]]:
    """Three budgets before the language model, and two plans that prune in its middle."""
    middle = layers // 2
    return {
        "divprune 0.5": [Prune(0, "diversity", 0.5)],
        "divprune 0.25": [Prune(0, "diversity", 0.25)],
        "divprune 0.1": [Prune(0, "diversity", 0.1)],
        f"fastv 0.25 at {middle}": [Prune(middle, "topk", 0.25)],
        f"divprune 0.5, random 0.1 at {middle}": [
            Prune(0, "diversity", 0.5),
            Prune(middle, "random", 0.1),
        ],
    }


class Bench:
    """One model and one batch of prompts, and every way to prefill them."""

    def __init__(self, sizes: MidSize, texts: tuple[int, ...]) -> None:
        self.model, self.texts = sizes.build(), texts
        self.image = self.model.config.image_token_id
        vocabulary = self.model.config.text_config.vocab_size
        picture = torch.full((sizes.visual_tokens,), self.image)
        self.inputs = prompts(texts, picture, self.image, vocabulary)
        pixels = sizes.inputs()["pixel_values"].expand(len(texts), -1, -1, -1)
        positions = (self.inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        self.inputs |= {"pixel_values": pixels.contiguous(), "position_ids": positions}

    def prefill(self) -> Any:
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)

    def milliseconds(self, way: str, plan: list[Prune], native: Shorter | None = None) -> float:
        """Of one prefill; patching is not timed."""
        with ExitStack() as stack:
            if way in ("padded", "packed"):
                stack.enter_context(vtfast.patch(self.model, plan, path=way))
            call = native if way == "native" else self.prefill
            start = time.process_time()
            call()
            return (time.process_time() - start) * 1e3


def race(bench: Bench, plan: list[Prune], rounds: int) -> dict:
    """Median times, and ratios to native taken round by round."""
    native = Shorter(bench.model, bench.inputs, Plan(plan), bench.image)
    taken: list[dict[str, float]] = []
    for number in range(rounds + 1):
        order = WAYS if number % 2 else WAYS[::-1]
        times = {way: bench.milliseconds(way, plan, native) for way in order}
        if number:  # the first round warms up
            taken.append(times)
    row: dict[str, Any] = {}
    for name in WAYS:
        row[f"{name}_ms"] = summary([times[name] for times in taken])
        row[f"{name}_of_native"] = summary([times[name] / times["native"] for times in taken])
    return row


@contextmanager
def stopwatch(seconds: dict[str, float]) -> Any:
    """Adds up the time in selections and in gathering for a stage."""

    def timing(name: str, inner: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

        return timed

    from vtfast.runtime.forward import Pass

    with ExitStack() as stack:
        for name in ("_select", "_take"):
            inner = getattr(Pass, name)
            stack.enter_context(mock.patch.object(Pass, name, timing(name, inner)))
        yield


def share_of_selection(bench: Bench, plan: list[Prune], rounds: int) -> float:
    """Of a packed prefill: picking rows (scores and features included) and gathering them."""
    shares = []
    for _ in range(rounds):
        seconds: dict[str, float] = {}
        with stopwatch(seconds):
            whole = bench.milliseconds("packed", plan)
        shares.append(sum(seconds.values()) * 1e3 / whole)
    return statistics.median(shares)


def python_microseconds(rounds: int, layers: int = 32) -> dict[str, float]:
    """What a patch adds on a model too small to take time, in CPU time: the machine may be busy."""
    bench = Bench(replace(TINY, layers=layers), (16,))
    plan = [Prune(0, "diversity", 0.5), Prune(layers // 2, "random", 0.1)]
    token = torch.tensor([[5]])

    def run(path: str | None) -> tuple[float, float]:
        with ExitStack() as stack:
            if path:
                stack.enter_context(vtfast.patch(bench.model, plan, path=path))
            start = time.process_time()
            cache = bench.prefill().past_key_values
            first = time.process_time()
            for _ in range(STEPS):
                bench.model(input_ids=token, past_key_values=cache)
            return (first - start) * 1e6, (time.process_time() - first) * 1e6 / STEPS

    samples: dict[Any, list[tuple[float, float]]] = {None: [], "padded": [], "packed": []}
    for _ in range(2 * rounds):
        for path, kept in samples.items():
            kept.append(run(path))
    prefill, step = ({p: statistics.median(s[i] for s in kept) for p, kept in samples.items()}
                     for i in (0, 1))  # fmt: skip
    return {
        f"{path}_{what}": (times[path] - times[None]) / per
        for path in ("padded", "packed")
        for what, times, per in (("per_prefill_layer", prefill, layers), ("per_token", step, 1))
    }


def table(rows: list[dict]) -> Table:
    out = Table(title="prefill, ms (median) and times native (median, p20-p80)")
    for column in ("batch", "plan", "unpatched", "native", "padded", "packed", "select + gather"):
        out.add_column(column, justify="left" if column == "plan" else "right")
    for row in rows:
        cells = [str(row["batch"]), row["plan"]]
        cells += [f"{row[f'{name}_ms']['median']:.0f}" for name in WAYS[:2]]
        for name in WAYS[2:]:
            ratio = row[f"{name}_of_native"]
            cells.append(f"{ratio['median']:.3f} ({ratio['p20']:.2f}-{ratio['p80']:.2f})")
        out.add_row(*cells, f"{row['select_and_gather']:.1%}")
    return out


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = TINY if options.tiny else MidSize()
    console = Console(stderr=True, width=120)
    cases = [(b, name) for b in TEXTS for name in plans(sizes.layers)]
    benches = {b: Bench(sizes, texts) for b, texts in TEXTS.items()}
    rows = []
    for batch, name in track(cases, "prefill", console=console):
        bench, plan = benches[batch], plans(sizes.layers)[name]
        with encoded_once(bench.model, bench.inputs):
            row = race(bench, plan, options.rounds)
            row["select_and_gather"] = share_of_selection(bench, plan, min(3, options.rounds))
        rows.append({"batch": batch, "texts": TEXTS[batch], "plan": name, **row})
    facts = machine.header("cpu") | {"rounds": options.rounds}
    python = python_microseconds(options.rounds)
    console.print(table(rows))
    for name, value in python.items():
        console.print(f"Python added, {name.replace('_', ' ')}: {value:.0f} us")
    for name in WAYS[2:]:
        for batch in TEXTS:
            worst = max(r[f"{name}_of_native"]["median"] for r in rows if r["batch"] == batch)
            console.print(f"worst {name}, batch {batch}: {worst:.3f} x native")
    if options.json:
        found = {**facts, "rows": rows, "python_us": python}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
