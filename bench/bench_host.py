"""What a patch costs the host: a prefill and a decoding step of a model so small that nothing else
takes time, in both layouts, for batches of alike and of unlike prompts.

    python bench/bench_host.py --json FILE --only "8 unlike"

Processor time of one thread, in alternating rounds; the ratios are within rounds. Without a GPU no
kernel is launched: a stand-in driver that does nothing takes the place of Triton's. The padding is
what the padded layout would compute in vain, as a share of its tokens summed over layers, by which
`path="auto"` decides; and as the FLOPs of this model's decoder, without attention.
"""

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before triton is imported

import machine
import torch
from harness import Record, parser
from machine import summary
from prefills import operators, profiling, ratios
from random_models import inputs_of
from report import aligned
from report_host import HOST, UNPATCHED, host

import vtfast
from vtfast import Plan, Prune
from vtfast.cli._prefill_race import TINY
from vtfast.kernels.compact import compact
from vtfast.runtime import selection
from vtfast.runtime.names import cache_argument, returned_cache

BATCHES, TEXTS = (1, 2, 4, 8, 32), (16, 48, 24, 80)  # text tokens, repeated
STEPS, LAYERS = 20, 32
PLAN = Plan([Prune(0, "uniform", 0.5)])  # picks on the host, whatever kernels would give
VARIANTS = {
    UNPATCHED: None,
    "padded": {"path": "padded", "impl": "eager"},
    "packed": {"path": "packed", "impl": "eager"},
    "packed, Triton": {"path": "packed", "impl": "triton"},
    "auto": {"path": "auto", "impl": "eager"},
}


def cases(batches: tuple[int, ...]) -> list[SimpleNamespace]:
    """A batch of prompts with as many text tokens each, and one of several lengths."""
    found = []
    for batch in batches:
        found.append(SimpleNamespace(name=f"{batch} alike", texts=(TEXTS[0],) * batch))
        if batch > 1:
            some = tuple(TEXTS[b % len(TEXTS)] for b in range(batch))
            found.append(SimpleNamespace(name=f"{batch} unlike", texts=some))
    return found


def run(model: Any, inputs: dict, how: dict | None, count: bool) -> tuple[dict, str, int]:
    """Milliseconds of a prefill and of a step, the layout, and the operators of a step if asked."""
    token = torch.full((len(inputs["input_ids"]), 1), 5)
    mask = inputs.get("attention_mask")
    with nullcontext() if how is None else vtfast.patch(model, PLAN, **how) as handle:
        start = time.process_time()
        cache = returned_cache(model(**inputs, use_cache=True, logits_to_keep=1))
        first = time.process_time()
        given = {"input_ids": token, cache_argument(): cache}
        for step in range(STEPS + count):
            if mask is not None:
                given["attention_mask"] = torch.nn.functional.pad(mask, (0, step + 1), value=1)
            with profiling("cpu") if step == STEPS else nullcontext() as seen:
                model(**given)
        taken = {"prefill": first - start, "step": (time.process_time() - first) / STEPS}
        layout = handle.report.path if handle else ""
    return {k: t * 1e3 for k, t in taken.items()}, layout, operators(seen) if count else 0


def measure(model: Any, layers: int, rounds: int, case: Any) -> dict:
    """The row of a case."""
    inputs = inputs_of(model, case.texts, TINY.visual_tokens)
    if len(set(case.texts)) == 1:  # `generate` leaves such a mask out
        inputs.pop("attention_mask")
    inputs.pop("position_ids", None)
    taken: dict[str, dict[str, list[float]]] = {v: {"prefill": [], "step": []} for v in VARIANTS}
    row: dict[str, Any] = {"op": HOST, "case": case.name, "texts": case.texts, "rounds": rounds}
    for number in range(rounds + 1):
        for name in list(VARIANTS)[:: 1 if number % 2 else -1]:
            times, layout, counted = run(model, inputs, VARIANTS[name], count=not number)
            if not number:  # the first round warms up
                row[f"{name} operators"], row[f"{name} layout"] = counted / layers, layout
            else:
                for what, value in times.items():
                    taken[name][what].append(value)
    for name, found in taken.items():
        for what, values in found.items():
            row[f"{name} {what}_ms"] = summary(values)
            row[f"{name} {what}"] = ratios(values, taken[UNPATCHED][what])
    visual = PLAN.tokens_per_layer(TINY.visual_tokens, layers)[-1]
    lengths = [visual + text for text in case.texts]
    held, padded = sum(lengths), len(lengths) * max(lengths)
    decoder = model.model.language_model.layers
    weights = sum(p.numel() for p in decoder.parameters() if p.ndim == 2)
    return row | {"padding": 1 - held / padded, "padding_flops": 2 * weights * (padded - held)}


@torch.inference_mode()
def main() -> int:
    options = parser(__doc__, rounds=30).parse_args()
    layers = TINY.layers if options.tiny else LAYERS
    torch.set_num_threads(1)
    facts = machine.header("cpu")
    import no_driver

    no_driver.stand_in("sm_90")
    # What is dropped has to be known, although no kernel computes it.
    eager = lambda *given, impl: compact(*given, impl="eager")  # noqa: E731
    model, record = replace(TINY, layers=layers).build(), Record(options.json, facts, {})
    wanted = cases(BATCHES[:2] if options.tiny else BATCHES)
    chosen = (case for case in wanted if any(text in case.name for text in options.only))
    one = lambda case, _: measure(model, layers, options.rounds, case)  # noqa: E731
    with mock.patch.object(selection, "compact", eager):
        record.measure(HOST, chosen, options.seconds, one)
    print(host(record.as_json(), aligned))
    return record.end()


if __name__ == "__main__":
    sys.exit(main())
