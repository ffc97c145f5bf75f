"""The tables and figures of docs/evidence.md; what is measured is in `evidence`."""

import json
from itertools import product
from typing import Any

import bench_information
import numpy as np
from matplotlib.figure import Figure
from report import ROOT, markdown, with_block

from vtfast import information, toy
from vtfast.information import Horizon, Sweep
from vtfast.information import plotting as plot

DOCS = ROOT / "docs"
MODELS = {"llava": "LLaVA, 12 layers", "llava-small": "LLaVA, 8 layers",
          "qwen": "Qwen2.5-VL, 8 layers", "qwen3": "Qwen3-VL, 8 layers"}  # fmt: skip
SWEPT, METHODS, BUDGET = "llava", ("random", "diversity", "topk", "information"), 0.2


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
    def told(facts: dict[str, Any]) -> str:
        return (
            f"with torch {facts['torch']}, transformers {facts['transformers']} and vtfast "
            f"{facts['vtfast']} on a CPU ({facts['device']}), fp32: `{facts['command']}`"
        )

    alone = (f"{MODELS[name]}: {told(facts)}. " for name, facts in result.get("alone", {}).items())
    return (
        f"Measured {told(result)}, `{cost['command']}`. {''.join(alone)}Horizons: {some.samples} "
        f"scenes a task, scores on {some.maps} of them, tolerance {100 * some.tolerance:g} %, "
        f"confidence {100 * some.confidence:g} %. "
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
    figure, panels = plot.panels(len(MODELS), 2, 4.4, 3.2, sharex=True, sharey="row")
    axes = np.array(panels).reshape(2, -1)
    cells = product(enumerate(MODELS.items()), enumerate(toy.TASKS))
    for (column, (name, title)), (number, task) in cells:
        found, colour = Horizon.of_record(result["horizons"][name][task]), plot.COLOURS[number]
        depth = np.array(found.layers) / found.num_layers
        for ax, curve in zip(axes[:, column], ("absolute", "accuracy_loss"), strict=True):
            one = found.curves[curve]
            mean, low, high = (100 * np.array(part) for part in (one.mean, one.low, one.high))
            ax.plot(depth, mean, "o-", ms=3, lw=1.3, color=colour, label=task)
            ax.fill_between(depth, low, high, color=colour, alpha=0.15, lw=0)
            if found.layer is not None:
                ax.axvline(found.layer / found.num_layers, color=colour, lw=0.8, ls=":")
        plot.set_title(axes[0, column], title)
        axes[1, column].set_xlabel("depth, layer / layers")
    axes[0, 0].set_ylabel("mean absolute score, points")
    axes[1, 0].set_ylabel("accuracy lost without\nvisual tokens, points")
    plot.add_legend(axes[0, 0])
    return figure
