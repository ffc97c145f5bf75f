"""What vtfast adds to a prefill and to a decoding step, beside the same model natively shorter.

A LLaVA with random weights, 16 layers of 1024, 576 visual tokens, on the CPU; ratios within
alternating rounds, of processor time. Then the share of selection and gathering in a prefill. What
the host does in a decoding step shows `bench_host.py`.

    python bench/bench_overhead.py --json FILE --only "b1, divprune"
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import machine
import report
import torch
from harness import Record, parser
from machine import summary
from prefills import Prompted, race, ratios
from random_models import encoded_once, inputs_of
from report import NATIVE, PACKED, PADDED, UNPATCHED

import vtfast
from vtfast import Plan, Prune
from vtfast.cli._prefill_race import TINY, MidSize
from vtfast.runtime.state import ForwardState

TEXTS = ((64,), (16, 48, 80, 112))  # text tokens of each sample
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
        with vtfast.patch(model, case.plan) as handle:  # which layout path="auto" takes
            prompted.prefill()
        row["auto"] = handle.report.path
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


@torch.inference_mode()
def main() -> int:
    options = parser(__doc__, rounds=7).parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes = TINY if options.tiny else MidSize()
    model, record = sizes.build(), Record(options.json, machine.header("cpu"), {})
    cases = (SimpleNamespace(name=f"b{len(texts)}, {title}", texts=texts, title=title, plan=plan)
             for texts in TEXTS for title, plan in plans(sizes.layers).items())  # fmt: skip
    chosen = (case for case in cases if any(text in case.name for text in options.only))
    one = lambda case, _: measure(model, sizes.visual_tokens, options.rounds, case)  # noqa: E731
    record.measure(report.OVERHEAD, chosen, options.seconds, one)
    print(report.overhead(record.as_json(), report.aligned))
    return record.end()


if __name__ == "__main__":
    sys.exit(main())
