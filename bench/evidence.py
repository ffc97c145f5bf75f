"""Test the claims of arXiv 2512.07580 on the bundled models, and write docs/evidence.md.

horizons   of every model and task: losses on 500 scenes, scores of every token on 48 of them
sweeps     of one model on three tasks: accuracy with 20 % kept from a layer on, by layer and method
plans      DivPrune alone and with Random at the task's horizon, at the same average budget

Takes 25 minutes on two free cores; finished samples are kept in build/evidence. The page's tables
and figures are made from `results/evidence.json` (`evidence_page`); its text is written by hand.
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any

import bench_information
import numpy as np
import torch
from evidence_page import BUDGET, DOCS, METHODS, MODELS, SWEPT, draw, page
from report import RESULTS, ROOT

import vtfast
from vtfast import information, toy
from vtfast.information import Horizon
from vtfast.information.answers import with_answers
from vtfast.information.bootstrap import estimate, resample
from vtfast.toy import evaluate, train
from vtfast.toy.model import CHECKPOINTS, family_of

RESULT, LOGS = RESULTS / "evidence.json", ROOT / "build" / "evidence"
SCENES, BATCH = 500, 50
SWEEP_TASKS, SWEEP_SCENES, SWEEP_SEED = ("shape_colour", "digit", "code"), 100, 7
PLAN_SCENES, PLAN_SEED, KEEPS = 300, 8, (0.5, 0.25)


def card(name: str) -> dict[str, Any]:
    """The model card of a bundled model, written when it was trained."""
    return json.loads((CHECKPOINTS / name / "training.json").read_text())


def measure_horizon(name: str, task: str) -> dict[str, Any]:
    """On the scenes the model's own card was measured on."""
    model, processor = toy.load(name)
    seed, sizes = card(name)["settings"]["seed"], family_of(model).SIZES
    how = {"sizes": sizes, "log": LOGS / f"{name}-{task}.jsonl"}
    return evaluate.horizon(model, processor, task, SCENES, seed, **how).record()


def measure_sweep(name: str, task: str) -> dict[str, Any]:
    model, processor = toy.load(name)
    data = evaluate.dataset(processor, task, SWEEP_SCENES, SWEEP_SEED, sizes=family_of(model).SIZES)
    how = {"keep": BUDGET, "batch": 25, "log": LOGS / f"sweep-{name}-{task}.jsonl"}
    return information.sweep(model, data, METHODS, progress=False, **how).record()


def measure_plans(name: str, task: str, horizon: dict[str, Any]) -> list[dict[str, Any]]:
    """Right answers under DivPrune alone and DivPrune + Random, at equal average budgets."""
    model, processor = toy.load(name)
    data = evaluate.dataset(processor, task, PLAN_SCENES, PLAN_SEED, family_of(model).SIZES)
    measured, rows = Horizon.of_record(horizon), []
    for keep in KEEPS if measured.layer is not None else ():  # without one both plans are equal
        alone = _right(model, data, plan="divprune", keep=keep)
        together = _right(model, data, plan="divprune+random", keep=keep, horizon=measured)
        gain = vars(estimate(together - alone, resample(PLAN_SCENES, 0), 0.95))
        row = {"keep": keep, "horizon": measured.layer, "alone": alone.mean()}
        rows.append({**row, "together": together.mean(), "gain": gain})
    return rows


def _right(model: Any, data: information.Dataset, **how: Any) -> np.ndarray:
    """1.0 for every sample whose answer tokens are all the arg max of a patched model, given them.

    DivPrune and random picks do not look at the text, so this is what greedy decoding would say.
    """
    right = []
    with torch.no_grad(), vtfast.patch(model, **how):
        for start in range(0, len(data), BATCH):
            told = data.batch(range(start, min(start + BATCH, len(data))))
            call, _ = with_answers(told.inputs, told.answers, model.device)
            said = model(**call, use_cache=False).logits.argmax(-1)
            pairs = zip(said, told.answers, strict=True)
            right += [tokens[-len(answer) :].tolist() == answer for tokens, answer in pairs]
    return np.array(right, dtype=np.float64)


def measure(jobs: int, names: list[str]) -> dict[str, Any]:
    """Everything of some models, on `jobs` processes of one thread each."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:

        def spread(what: Callable, cells: list[tuple]) -> dict[str, dict[str, Any]]:
            out: dict[str, dict[str, Any]] = {}
            for cell, found in zip(cells, pool.map(what, *zip(*cells, strict=True)), strict=True):
                out.setdefault(cell[0], {})[cell[1]] = found
                print(f"{what.__name__} {cell[0]} {cell[1]}", flush=True)
            return out

        pairs = list(product(names, toy.TASKS))
        horizons = spread(measure_horizon, pairs)
        sweeps = spread(measure_sweep, list(product({SWEPT} & {*names}, SWEEP_TASKS)))
        plans = spread(measure_plans, [(n, t, horizons[n][t]) for n, t in pairs])
    return {"horizons": horizons, "sweeps": sweeps.get(SWEPT, {}), "plans": plans}


def measured(jobs: int, name: str | None) -> dict[str, Any]:
    """What `RESULT` is to hold: everything anew, or of one model anew and the rest as it was."""
    found = json.dumps(measure(jobs, [name] if name else list(MODELS)))
    found = json.loads(found, parse_float=lambda number: round(float(number), 5))  # a small file
    if name is None:
        facts = bench_information.versions("python bench/evidence.py")
        return {**facts, "plan_scenes": PLAN_SCENES, "alone": {}, **found}
    result = json.loads(RESULT.read_text())
    for part, of_model in found.items():
        result[part] |= of_model
    facts = bench_information.versions(f"python bench/evidence.py --model {name}")
    return {**result, "alone": {**result.get("alone", {}), name: facts}}


def write_horizons(result: dict[str, Any]) -> None:
    """Write horizons into the cards and configurations of the bundled checkpoints."""
    for name, tasks in result["horizons"].items():
        found = {task: Horizon.of_record(record) for task, record in tasks.items()}
        fresh = {**card(name), **evaluate.record(found)}
        (CHECKPOINTS / name / "training.json").write_text(json.dumps(fresh, indent=1) + "\n")
        layer = evaluate.hardest_horizon(fresh["horizon"])
        train.record_horizon(CHECKPOINTS / name / "config.json", layer)


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--model", choices=MODELS, help="measure this one alone (default: all)")
    parser.add_argument("--write-horizons", action="store_true", help="into the checkpoints too")
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    parser.add_argument("--check", action="store_true", help="only compare page and JSON")
    args, document = parser.parse_args(), DOCS / "evidence.md"
    if not (args.page or args.check):
        RESULT.write_text(json.dumps(measured(args.jobs, args.model)) + "\n")
    result, text = json.loads(RESULT.read_text()), document.read_text()
    fresh = page(result, text)
    if args.check:
        print("the page agrees" if fresh == text else "the page differs: run without --check")
        return int(fresh != text)
    if args.write_horizons:
        write_horizons(result)
    document.write_text(fresh)
    draw(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
