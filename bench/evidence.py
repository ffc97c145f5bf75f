"""Test the claims of arXiv 2512.07580 on the three bundled models, and write docs/evidence.md.

horizons   of every model and task: losses on 500 scenes, scores of every token on 48 of them
sweeps     of one model on three tasks: accuracy with 20 % kept from a layer on, by layer and method
plans      DivPrune alone and with Random at the task's horizon, at the same average budget

Takes 20 minutes on two free cores; finished samples are kept in build/evidence. The page's tables
and figures are made from `results/evidence.json`; its text is written by hand.
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import RESULTS, ROOT, markdown, with_block

import vtfast
from vtfast import information, toy
from vtfast.information import Horizon, Sweep
from vtfast.information.answers import with_answers
from vtfast.information.bootstrap import estimate, resample
from vtfast.toy import evaluate, train
from vtfast.toy.model import CHECKPOINTS, family_of

RESULT, LOGS, DOCS = RESULTS / "evidence.json", ROOT / "build" / "evidence", ROOT / "docs"
MODELS = {"llava": "LLaVA, 12 layers", "llava-small": "LLaVA, 8 layers",
          "qwen": "Qwen2.5-VL, 8 layers"}  # fmt: skip
SCENES, BATCH = 500, 50
SWEPT, SWEEP_TASKS, SWEEP_SCENES, SWEEP_SEED = "llava", ("shape_colour", "digit", "code"), 100, 7
METHODS, BUDGET = ("random", "diversity", "topk", "information"), 0.2
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


def measure(jobs: int) -> dict[str, Any]:
    """Everything, on `jobs` processes of one thread each."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:

        def spread(what: Callable, cells: list[tuple]) -> dict[str, dict[str, Any]]:
            out: dict[str, dict[str, Any]] = {}
            for cell, found in zip(cells, pool.map(what, *zip(*cells, strict=True)), strict=True):
                out.setdefault(cell[0], {})[cell[1]] = found
                print(f"{what.__name__} {cell[0]} {cell[1]}", flush=True)
            return out

        pairs = list(product(MODELS, toy.TASKS))
        horizons = spread(measure_horizon, pairs)
        sweeps = spread(measure_sweep, [(SWEPT, task) for task in SWEEP_TASKS])
        plans = spread(measure_plans, [(n, t, horizons[n][t]) for n, t in pairs])
    facts = bench_information.versions("python bench/evidence.py")
    found = {"horizons": horizons, "sweeps": sweeps[SWEPT], "plans": plans}
    return {**facts, "plan_scenes": PLAN_SCENES, **found}


def write_horizons(result: dict[str, Any]) -> None:
    """Write horizons into the cards and configurations of the bundled checkpoints."""
    for name, tasks in result["horizons"].items():
        found = {task: Horizon.of_record(record) for task, record in tasks.items()}
        fresh = {**card(name), **evaluate.record(found)}
        (CHECKPOINTS / name / "training.json").write_text(json.dumps(fresh, indent=1) + "\n")
        layer = evaluate.hardest_horizon(fresh["horizon"])
        train.record_horizon(CHECKPOINTS / name / "config.json", layer)


# The page


def page(result: dict[str, Any], text: str) -> str:
    """The page with every table made anew."""
    cost = json.loads(bench_information.RESULT.read_text())
    found = {(name, task): Horizon.of_record(result["horizons"][name][task])
             for name, task in product(MODELS, toy.TASKS)}  # fmt: skip
    sweeps = {task: Sweep.of_record(record) for task, record in result["sweeps"].items()}
    for name, table in {
        "horizons": horizons_table(found),
        "scores": scores_table(found),
        "methods": "\n\n".join(methods_table(task, swept) for task, swept in sweeps.items()),
        "agreement": agreement_table(sweeps, found),
        "plans": plans_table(result["plans"]),
        "cost": bench_information.table(cost),
        "versions": versions(result, cost, found["llava", "code"]),
    }.items():
        text = with_block(text, name, table)
    return text


def _table(head: list[str], rows: list[list[str]], note: str = "") -> str:
    shown = markdown([head, *rows], ["---", *["--:"] * (len(head) - 1)])
    return f"{shown}\n\n{note}" if note else shown


def _words(task: str) -> str:
    return task.replace("_", " ")


def horizons_table(found: dict[tuple[str, str], Horizon]) -> str:
    def cell(one: Horizon) -> str:
        low, high = ("none" if end is None else end for end in one.interval)
        depth = (
            "none" if one.layer is None else f"**{one.layer}**, {one.layer / one.num_layers:.2f}"
        )
        return f"{depth}{'' if one.shown else ', not shown'} ({low} to {high})"

    rows = [[_words(task), *(cell(found[name, task]) for name in MODELS)] for task in toy.TASKS]
    return _table(["task", *MODELS.values()], rows)


def scores_table(found: dict[tuple[str, str], Horizon]) -> str:
    parts, widest = [], 0.0
    for name, title in MODELS.items():
        rows = []
        for task in toy.TASKS:
            one, curve = found[name, task], found[name, task].curves["absolute"]
            cells = zip(curve.mean, one.spread, strict=True)
            rows.append([_words(task), *(f"{100 * m:.1f} / {100 * s:.1f}" for m, s in cells)])
            widest = max(widest, float(np.max(np.subtract(curve.high, curve.low)) / 2))
        parts.append(_table([title, *(f"L{i}" for i in range(one.num_layers))], rows))
    note = f"{one.maps} scenes each; 95 % intervals of the means over scenes are at most"
    return "\n\n".join([*parts, f"{note} ±{100 * widest:.1f} points."])


def methods_table(task: str, found: Sweep) -> str:
    rows = [["none", *(f"{100 * x:.0f}" for x in found.without.mean)]]
    for method in dict.fromkeys(row.method for row in found.rows):
        cells = found.of(method, BUDGET)
        if (seeds := len(cells[0].seeds)) > 1:
            shown = [f"{100 * c.accuracy:.0f} ±{100 * c.spread:.0f}" for c in cells]
            rows.append([f"{method}, ± sd of {seeds} seeds", *shown])
        else:
            rows.append([method, *(f"{100 * c.accuracy:.0f}" for c in cells)])
    widest = max((row.high - row.low) / 2 for row in found.rows)
    note = (
        f"{found.samples} scenes, every token {100 * found.accuracy_full.mean[0]:.0f} %; 95 % "
        f"intervals over scenes are at most ±{100 * widest:.0f} points."
    )
    return _table([_words(task), *(f"L{i}" for i in found.layers)], rows, note)


def agreement_table(sweeps: dict[str, Sweep], found: dict[tuple[str, str], Horizon]) -> str:
    """How far random, diversity and attention lie apart before the horizon and beyond it."""
    rows, widths = [], {True: 0.0, False: 0.0}  # of intervals, by being beyond the horizon
    for task, swept in sweeps.items():
        layer = found[SWEPT, task].layer
        edge = swept.num_layers if layer is None else layer
        methods = ([c.accuracy for c in swept.of(m, BUDGET)] for m in METHODS[:3])
        apart = 100 * np.ptp(np.array(list(methods)), axis=0)
        for row in (row for row in swept.rows if row.method != "information"):
            beyond = row.layer >= edge
            widths[beyond] = max(widths[beyond], 50 * (row.high - row.low))
        before, after = apart[:edge], apart[edge:]
        shown = [f"{before.max():.0f}", f"{before.mean():.0f}"]
        shown += [f"{after.max():.0f}" if len(after) else ""]
        rows.append([_words(task), "none" if layer is None else str(layer), *shown])
    head = ["task", "horizon", "before: most", "before: mean of layers", "beyond: most"]
    note = (
        f"95 % intervals of the accuracies compared are at most ±{widths[False]:.0f} points before "
        f"the horizons and ±{widths[True]:.0f} beyond."
    )
    return _table(head, rows, note)


def plans_table(plans: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    rows, gains = [], []
    for name, task in product(MODELS, toy.TASKS):
        for row in plans[name][task]:
            (mean,), (low,), (high,) = gain = [row["gain"][k] for k in ("mean", "low", "high")]
            gains.append([part[0] for part in gain])
            cells = [f"{row['keep']:g}", *(f"{100 * row[k]:.1f}" for k in ("alone", "together"))]
            said = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            rows.append([MODELS[name], _words(task), str(row["horizon"]), *cells, said])
    head = ["model", "task", "horizon", "keep", "DivPrune", "DivPrune + Random", "gain, points"]
    mean, low, high = np.array(gains).T
    note = (
        f"The interval lies above zero in {sum(low > 0)} of {len(gains)} rows and below in "
        f"{sum(high < 0)}; the mean of all rows is {100 * mean.mean():+.1f} points."
    )
    return _table(head, rows, note)


def versions(result: dict[str, Any], cost: dict[str, Any], some: Horizon) -> str:
    return (
        f"Measured with torch {result['torch']}, transformers {result['transformers']} and vtfast "
        f"{result['vtfast']} on a CPU ({result['device']}), fp32: `{result['command']}`, "
        f"`{cost['command']}`. Horizons: {some.samples} scenes a task, scores on {some.maps} of "
        f"them, tolerance {100 * some.tolerance:g} %, confidence {100 * some.confidence:g} %. "
        f"Plans: {result['plan_scenes']} scenes."
    )


def draw(result: dict[str, Any]) -> None:
    """The figures beside the page."""
    horizons_figure(result).savefig(DOCS / "evidence-horizons.png", dpi=110)
    for task, record in result["sweeps"].items():
        figure = Sweep.of_record(record).figure()
        figure.savefig(DOCS / f"evidence-sweep-{task}.png", dpi=90)
    model, processor = toy.load("llava")
    pictures, questions, answers = toy.scenes(1, 3, "code")
    text = toy.prompt(processor, questions[0])
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    ids = information.answer_ids(processor.tokenizer, answers[0])
    found = information.score(model, inputs, ids, per="mean_token", progress=False)
    found.figure(pictures, (0, 4, 7, 8, 9, 11)).savefig(DOCS / "evidence-scores.png", dpi=90)


def horizons_figure(result: dict[str, Any]) -> Figure:
    """Information and lost accuracy against depth, a line for every task, a column per model."""
    figure = Figure((13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(MODELS), sharex=True, sharey="row")
    cells = product(enumerate(MODELS.items()), enumerate(toy.TASKS))
    for (column, (name, title)), (number, task) in cells:
        found, colour = Horizon.of_record(result["horizons"][name][task]), f"C{number}"
        depth = np.array(found.layers) / found.num_layers
        for ax, curve in zip(axes[:, column], ("absolute", "accuracy_loss"), strict=True):
            one = found.curves[curve]
            mean, low, high = (100 * np.array(part) for part in (one.mean, one.low, one.high))
            ax.plot(depth, mean, "o-", ms=3, lw=1.3, color=colour, label=task)
            ax.fill_between(depth, low, high, color=colour, alpha=0.15, lw=0)
            if found.layer is not None:
                ax.axvline(found.layer / found.num_layers, color=colour, lw=0.8, ls=":")
        axes[0, column].set_title(title, size=10)
        axes[1, column].set_xlabel("depth, layer / layers", size=9)
    axes[0, 0].set_ylabel("mean absolute score, points", size=9)
    axes[1, 0].set_ylabel("accuracy lost without visual tokens, points", size=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--write-horizons", action="store_true", help="into the checkpoints too")
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    parser.add_argument("--check", action="store_true", help="only compare page and JSON")
    args, document = parser.parse_args(), DOCS / "evidence.md"
    if not (args.page or args.check):
        measured = json.dumps(measure(args.jobs))  # 5 decimals keep the file small
        rounded = json.loads(measured, parse_float=lambda number: round(float(number), 5))
        RESULT.write_text(json.dumps(rounded) + "\n")
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
