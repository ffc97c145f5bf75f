"""What vtfast adds to a prefill and to a decoding step, beside the same model natively shorter.

A LLaVA with random weights, 16 layers of 1024, 576 visual tokens, on the CPU; ratios within
alternating rounds, of processor time. Then the share of selection and gathering in a prefill, and
the host cost of a model so small that nothing else takes time.

    python bench/bench_overhead.py --json FILE --only "b1, divprune"
    python bench/bench_overhead.py --host    # a decoding step: operators and Python, also of Triton

`--host` launches nothing: a stand-in driver that does nothing takes the place of the GPU.
"""

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

import machine
import report
import torch
from harness import Record, parser
from machine import summary
from prefills import Prompted, operators, profiling, race, ratios
from random_models import encoded_once, inputs_of
from report import NATIVE, PACKED, PADDED, UNPATCHED

import vtfast
from vtfast import Plan, Prune
from vtfast.cli._prefill_race import TINY, MidSize
from vtfast.runtime.names import cache_argument, returned_cache
from vtfast.runtime.state import ForwardState

TEXTS = ((64,), (16, 48, 80, 112))  # text tokens of each sample
STEPS, LAYERS = 50, 32  # decoded tokens and layers of the tiny model
SELECT, GATHER = "_select", "_take"  # methods of ForwardState: pick a stage's tokens, gather them


def keep_freed_memory() -> None:
    """From now on keep freed memory in the process, if the C library is glibc."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def plans(layers: int) -> dict[str, Plan]:
    """Three budgets before the language model, and two plans that prune in its middle."""
    middle = layers // 2
    stages = {f"divprune {keep}": [Prune(0, "diversity", keep)] for keep in (0.5, 0.25, 0.1)}
    stages[f"fastv 0.25 at {middle}"] = [Prune(middle, "topk", 0.25)]
    both = [Prune(0, "diversity", 0.5), Prune(middle, "random", 0.1)]
    stages[f"divprune 0.5, random 0.1 at {middle}"] = both
    return {name: Plan(some) for name, some in stages.items()}


def measure(model: Any, tokens: int, rounds: int, case: Any) -> dict:
    """The row of a case."""
    row = {"op": report.OVERHEAD, "case": case.name, "batch": len(case.texts),
           "texts": case.texts, "plan": case.title, "rounds": rounds}  # fmt: skip
    inputs = inputs_of(model, case.texts, tokens)
    with encoded_once(model, inputs):
        prompted = Prompted(model, inputs)
        variants = prompted.variants(case.plan)
        race(variants, 1, "cpu")  # warms up
        taken = race(variants, rounds, "cpu")
        for title, name in (("unpatched", UNPATCHED), *((n, n) for n in (NATIVE, PADDED, PACKED))):
            row[f"{title}_ms"] = summary(taken[name]["ttft"])
            row[f"{title}_of_native"] = ratios(taken[name]["ttft"], taken[NATIVE]["ttft"])
        shares = [_share_of_selection(prompted, case.plan) for _ in range(min(3, rounds))]
    return row | {"select_and_gather": statistics.median(shares)}


def _share_of_selection(prompted: Prompted, plan: Plan) -> float:
    """Share of a packed prefill spent on picking tokens (with their scores) and gathering them."""
    spent = []

    def timed(inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            found = inner(*args, **kwargs)
            spent.append(time.process_time() - start)
            return found

        return call

    with ExitStack() as stack:
        for name in (SELECT, GATHER):
            inner = timed(getattr(ForwardState, name))
            stack.enter_context(mock.patch.object(ForwardState, name, inner))
        taken = race({PACKED: prompted.patched(plan, PACKED)}, 1, "cpu")
    return 1e3 * sum(spent) / taken[PACKED]["ttft"][0]


def host_cost(variants: dict, plan: Plan, rounds: int, layers: int) -> dict[str, dict]:
    """Microseconds of a prefill and of a decoding step at batch 1, and the operators of a step.

    variants: name → options of `vtfast.patch`, None for the unpatched model. All run in turn.
    """
    model = replace(TINY, layers=layers).build()
    inputs, token = inputs_of(model, (16,), TINY.visual_tokens), torch.tensor([[5]])

    def run(how: dict | None) -> dict[str, float]:
        with nullcontext() if how is None else vtfast.patch(model, plan, **how):
            start = time.process_time()
            cache = returned_cache(model(**inputs, use_cache=True, logits_to_keep=1))
            first, step = time.process_time(), {"input_ids": token, cache_argument(): cache}
            for _ in range(STEPS):
                model(**step)
            last = time.process_time()
            with profiling("cpu") as seen:
                model(**step)
        times = {"prefill": (first - start) * 1e6, "step": (last - first) * 1e6 / STEPS}
        return {**times, "operators": operators(seen)}

    samples: dict[str, list[dict]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            found = run(variants[name])
            samples[name] += [found] if number else []  # the first round warms up
    return {name: {key: statistics.median(s[key] for s in some) for key in some[0]}
            for name, some in samples.items()}  # fmt: skip


def python_row(rounds: int, layers: int) -> dict:
    """Microseconds that a patch adds per layer of a prefill and per decoded token, by layout."""
    plan = Plan([Prune(0, "diversity", 0.5), Prune(layers // 2, "random", 0.1)])
    variants = {"stock": None, PADDED: {"path": PADDED}, PACKED: {"path": PACKED}}
    found = host_cost(variants, plan, rounds, layers)
    stock, row = found.pop("stock"), {"op": "python", "case": f"{layers} layers of {TINY.width}"}
    for path, cost in found.items():
        row[f"{path}_per_prefill_layer"] = (cost["prefill"] - stock["prefill"]) / layers
        row[f"{path}_per_token"] = cost["step"] - stock["step"]
    return row


def host_table(rounds: int, layers: int) -> str:
    """A decoding step, unpatched and patched in every layout."""
    import no_driver

    no_driver.stand_in("sm_90")
    kinds = {"padded": (PADDED, "eager"), "packed": (PACKED, "eager"),
             "packed, Triton (nothing launched)": (PACKED, "triton")}  # fmt: skip
    patched = {name: {"path": path, "impl": impl} for name, (path, impl) in kinds.items()}
    plan = Plan([Prune(0, "uniform", 0.5)])  # picks on the host, whatever kernels would give
    found = host_cost({"unpatched": None, **patched}, plan, rounds, layers)
    table, stock = [["", "operators a layer", "us a step", "of unpatched"]], found["unpatched"]
    for name, cost in found.items():
        ratio = f"{cost['step'] / stock['step']:.3f}"
        table.append([name, f"{cost['operators'] / layers:.1f}", f"{cost['step']:.0f}", ratio])
    return report.aligned(table)


@torch.inference_mode()
def main() -> int:
    arguments = parser(__doc__, rounds=7)
    arguments.add_argument("--host", action="store_true", help="only the cost of a decoding step")
    options = arguments.parse_args()
    layers = TINY.layers if options.tiny else LAYERS
    torch.set_num_threads(1)
    if options.host:
        print(host_table(options.rounds, layers))
        return 0
    keep_freed_memory()
    sizes = TINY if options.tiny else MidSize()
    model, record = sizes.build(), Record(options.json, machine.header("cpu"), {})
    cases = (SimpleNamespace(name=f"b{len(texts)}, {title}", texts=texts, title=title, plan=plan)
             for texts in TEXTS for title, plan in plans(sizes.layers).items())  # fmt: skip
    chosen = (case for case in cases if any(text in case.name for text in options.only))
    one = lambda case, _: measure(model, sizes.visual_tokens, options.rounds, case)  # noqa: E731
    record.measure(report.OVERHEAD, chosen, options.seconds, one)
    python = SimpleNamespace(name=f"{layers} layers of {TINY.width}")
    record.measure(
        "python", [python], options.seconds, lambda *_: python_row(options.rounds, layers)
    )
    print(report.overhead(record.as_json(), report.aligned))
    return record.end()


if __name__ == "__main__":
    sys.exit(main())
