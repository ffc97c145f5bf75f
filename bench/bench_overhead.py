"""What vtfast adds to a prefill and to a decoding step, beside the same model natively shorter.

A LLaVA with random weights, 16 layers of 1024, 576 visual tokens, on the CPU. In every round each
way runs once, in alternating order, and the ratios are taken within the round, of processor time
(of one thread by default): waiting for a turn on a busy machine does not count. Freed memory stays
with the process, as it does on a GPU: how many fresh pages the system hands out depends on what
ran before, and is no way's own cost.

- unpatched: all tokens;
- native: the same model on sequences as short as the plan makes them, padded (`models.Shorter`);
- padded, packed: patched, in either layout.

Then the share of selection and gathering in a prefill, and the Python that is left: microseconds a
layer and a decoded token, on a model so small that nothing else takes time.

    python bench/bench_overhead.py [--json FILE] [--rounds 7] [--only "b1, divprune"]

The file is whole after every case, and a run that was stopped goes on with it. Of cases that miss
their target a profile says where the time goes.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import counts
import figures
import machine
import overhead_figures
import torch
from harness import Record
from models import Shorter, encoded_once, prompts
from prefills import Way
from rich.console import Console
from rich.progress import track
from timing import summary

import vtfast
from vtfast import Plan, Prune
from vtfast.cli._prefill_race import TINY, MidSize
from vtfast.runtime.names import cache_argument, returned_cache

OP = "overhead"
TEXTS = ((64,), (16, 48, 80, 112))  # text tokens of each sample
STEPS = 50
PYTHON = "32 layers of 64"
WAYS = ("unpatched", "native", "padded", "packed")


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Where the C library is glibc, give nothing back to the system from now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


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

    from vtfast.runtime.state import ForwardState

    with ExitStack() as stack:
        for name in ("_select", "_take"):
            inner = getattr(ForwardState, name)
            stack.enter_context(mock.patch.object(ForwardState, name, timing(name, inner)))
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
            cache = returned_cache(bench.prefill())
            first = time.process_time()
            for _ in range(STEPS):
                bench.model(input_ids=token, **{cache_argument(): cache})
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


def profile(bench: Bench, plan: list[Prune]) -> str:
    """Where a packed prefill spends more than a native one."""
    native = Shorter(bench.model, bench.inputs, Plan(plan), bench.image)
    patched = partial(vtfast.patch, bench.model, plan, path="packed")
    ways = {
        "packed": Way(patched, bench.prefill, step=bench.model),
        "native": Way(nullcontext, native.prefill, step=native.step),
    }
    return counts.contributors(counts.profiled(ways, "cpu"), *ways, top=6)


def measure(bench: Bench, name: str, plan: list[Prune], rounds: int) -> dict:
    """The row of a case."""
    batch = len(bench.texts)
    row = {"op": OP, "case": f"b{batch}, {name}", "batch": batch, "texts": bench.texts,
           "plan": name, "rounds": rounds}  # fmt: skip
    with encoded_once(bench.model, bench.inputs):
        row |= race(bench, plan, rounds)
        row["select_and_gather"] = share_of_selection(bench, plan, min(3, rounds))
        if overhead_figures.missed(row):
            row["profile"] = profile(bench, plan)
    return row


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write there; goes on with it")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    sizes = TINY if options.tiny else MidSize()
    record = Record(options.json, machine.header("cpu"))
    record.begin({})
    cases = [(texts, name) for texts in TEXTS for name in plans(sizes.layers)]
    bench = None
    for texts, name in track(cases, "prefill", console=Console(stderr=True, width=120)):
        case = f"b{len(texts)}, {name}"
        if options.only not in case or record.row(OP, case) is not None:
            continue
        if bench is None or bench.texts != texts:
            bench = Bench(sizes, texts)
        record.put(measure(bench, name, plans(sizes.layers)[name], options.rounds))
        record.save()
    if record.row("python", PYTHON) is None:
        record.put({"op": "python", "case": PYTHON, **python_microseconds(options.rounds)})
        record.save()
    print(overhead_figures.document(record.as_json(), figures.aligned))
    return 0


if __name__ == "__main__":
    sys.exit(main())
