"""Measure what arXiv 2512.07580 claims, on the three bundled models: docs/evidence.md.

    python bench/evidence.py                    # within 20 minutes on two free cores
    python bench/evidence.py --write-horizons   # also into the bundled checkpoints
    python bench/evidence.py --page             # only tables and figures, from the JSON
    python bench/evidence.py --check            # does the page show what the JSON says?

horizons   of every model and task: losses on 500 scenes, scores of every token on 48 of them
sweeps     of one model on three tasks: accuracy with 20 % kept from a layer on, by layer and method
plans      DivPrune alone and with Random at the task's horizon, at the same average budget

Finished samples are kept in build/evidence, so a run that was stopped goes on. Everything goes to
`results/evidence.json`; tables and figures of the page are made from it (`evidence_page.py`).
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import evidence_page
import numpy as np
import torch
import transformers

import vtfast
from vtfast import information, toy
from vtfast.information import Horizon
from vtfast.information.answers import with_answers
from vtfast.information.bootstrap import estimate, resample
from vtfast.toy import evaluate, train
from vtfast.toy.model import CHECKPOINTS, family_of

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "evidence.json"
LOGS = HERE.parent / "build" / "evidence"
MODELS = ("llava", "llava-small", "qwen")
SCENES, BATCH = 500, 50
SWEPT, SWEEP_TASKS, SWEEP_SCENES, SWEEP_SEED = "llava", ("shape_colour", "digit", "code"), 100, 7
METHODS = ("random", "diversity", "topk", "information")
PLAN_SCENES, PLAN_SEED, KEEPS = 300, 8, (0.5, 0.25)


def card(name: str) -> dict[str, Any]:
    """What was noted of a bundled model when it was trained."""
    return json.loads((CHECKPOINTS / name / "training.json").read_text())


def measure_horizon(name: str, task: str) -> dict[str, Any]:
    """On the scenes the model's own card was measured on."""
    model, processor = toy.load(name)
    seed, sizes = card(name)["settings"]["seed"], family_of(model).SIZES
    found = evaluate.horizon(
        model, processor, task, SCENES, seed, sizes=sizes, log=LOGS / f"{name}-{task}.jsonl"
    )
    return found.record()


def measure_sweep(name: str, task: str) -> dict[str, Any]:
    model, processor = toy.load(name)
    data = evaluate.dataset(processor, task, SWEEP_SCENES, SWEEP_SEED, sizes=family_of(model).SIZES)
    log = LOGS / f"sweep-{name}-{task}.jsonl"
    found = information.sweep(model, data, METHODS, keep=0.2, batch=25, log=log, progress=False)
    return found.record()


def measure_plans(name: str, task: str, horizon: dict[str, Any]) -> list[dict[str, Any]]:
    """Right answers under DivPrune alone and DivPrune + Random, at equal average budgets."""
    model, processor = toy.load(name)
    data = evaluate.dataset(processor, task, PLAN_SCENES, PLAN_SEED, family_of(model).SIZES)
    measured, rows = Horizon.of_record(horizon), []
    if measured.layer is None:  # the plan would be DivPrune alone
        return rows
    for keep in KEEPS:
        alone = _right(model, data, {"plan": "divprune", "keep": keep})
        both = {"plan": "divprune+random", "keep": keep, "horizon": measured}
        together = _right(model, data, both)
        weights = resample(PLAN_SCENES, 0)
        rows.append(
            {
                "keep": keep,
                "horizon": measured.layer,
                "alone": alone.mean(),
                "together": together.mean(),
                "gain": vars(estimate(together - alone, weights, 0.95)),
            }
        )
    return rows


def _right(model: Any, data: information.Dataset, how: dict[str, Any]) -> np.ndarray:
    """1.0 for every sample whose true answer is all arg max of a patched model, answer given.

    DivPrune and random picks do not look at the text, so this is what greedy decoding would say.
    """
    right = []
    with torch.no_grad(), vtfast.patch(model, **how):
        for start in range(0, len(data), BATCH):
            told = data.batch(range(start, min(start + BATCH, len(data))))
            call, _ = with_answers(told.inputs, told.answers, model.device)
            said = model(**call, use_cache=False).logits.argmax(-1)
            right += [
                row[-len(answer) :].tolist() == answer
                for row, answer in zip(said, told.answers, strict=True)
            ]
    return np.array(right, dtype=np.float64)


def measure(jobs: int) -> dict[str, Any]:
    """Everything, on `jobs` processes of one thread each."""
    LOGS.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:

        def spread(what: Callable, cells: list[tuple]) -> dict[str, dict[str, Any]]:
            out: dict[str, dict[str, Any]] = {}
            for cell, found in zip(cells, pool.map(what, *zip(*cells, strict=True)), strict=True):
                out.setdefault(cell[0], {})[cell[1]] = found
                print(f"{what.__name__} {cell[0]} {cell[1]}", flush=True)
            return out

        pairs = [(name, task) for name in MODELS for task in toy.TASKS]
        horizons = spread(measure_horizon, pairs)
        sweeps = spread(measure_sweep, [(SWEPT, task) for task in SWEEP_TASKS])
        plans = spread(measure_plans, [(n, t, horizons[n][t]) for n, t in pairs])
    return {
        "command": "python bench/evidence.py",
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "vtfast": vtfast.__version__,
        "plan_scenes": PLAN_SCENES,
        "horizons": horizons,
        "sweeps": sweeps[SWEPT],
        "plans": plans,
    }


def rounded(value: Any) -> Any:
    """Floats to 5 digits behind the point, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def write_horizons(result: dict[str, Any]) -> None:
    """Into the cards and configurations of the bundled checkpoints."""
    for name, tasks in result["horizons"].items():
        found = {task: Horizon.of_record(record) for task, record in tasks.items()}
        fresh = {**card(name), **evaluate.record(found)}
        (CHECKPOINTS / name / "training.json").write_text(json.dumps(fresh, indent=1) + "\n")
        layer = evaluate.hardest_horizon(fresh["horizon"])
        train.record_horizon(CHECKPOINTS / name / "config.json", layer)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--write-horizons", action="store_true", help="into the checkpoints too")
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    parser.add_argument("--check", action="store_true", help="only compare page and JSON")
    args = parser.parse_args()
    if args.check:
        return evidence_page.check(json.loads(RESULT.read_text()))
    result = json.loads(RESULT.read_text()) if args.page else rounded(measure(args.jobs))
    RESULT.write_text(json.dumps(result) + "\n")
    if args.write_horizons:
        write_horizons(result)
    evidence_page.write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
