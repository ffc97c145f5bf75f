"""The numbers and figures of docs/evidence.md, from the JSON that `evidence.py` wrote.

The page is text with tables between markers; text is written by hand, tables never.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import bench_information
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtfast import information, toy
from vtfast.information import Horizon, Sweep
from vtfast.information.bootstrap import Estimate

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "evidence.md"
TITLES = {
    "llava": "LLaVA, 12 layers",
    "llava-small": "LLaVA, 8 layers",
    "qwen": "Qwen2.5-VL, 8 layers",
}
_BUDGET = 0.2


def write(result: dict[str, Any]) -> None:
    """Tables into the page, and the figures beside it."""
    PAGE.write_text(page(result, PAGE.read_text()))
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


def check(result: dict[str, Any]) -> int:
    """0 if the page shows what the JSON says."""
    text = PAGE.read_text()
    agrees = page(result, text) == text
    print("the page agrees" if agrees else "the page differs from the JSON: run without --check")
    return int(not agrees)


def page(result: dict[str, Any], text: str) -> str:
    """The page with every table made anew."""
    cost = json.loads(bench_information.RESULT.read_text())
    tables = {
        "horizons": horizons_table(result),
        "scores": scores_table(result),
        "methods": methods_table(result),
        "agreement": agreement_table(result),
        "plans": plans_table(result),
        "cost": bench_information.table(cost),
        "versions": versions(result, cost),
    }
    for name, table in tables.items():
        head, rest = text.split(f"<!-- {name}: begin -->")
        _, tail = rest.split(f"<!-- {name}: end -->")
        text = f"{head}<!-- {name}: begin -->\n{table}\n<!-- {name}: end -->{tail}"
    return text


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _horizons(result: dict[str, Any]) -> Iterator[tuple[str, str, Horizon]]:
    for name, task in product(TITLES, toy.TASKS):
        yield name, task, Horizon.of_record(result["horizons"][name][task])


def horizons_table(result: dict[str, Any]) -> str:
    rows: dict[str, list[str]] = {task: [task.replace("_", " ")] for task in toy.TASKS}
    for _, task, found in _horizons(result):
        low, high = ("none" if end is None else end for end in found.interval)
        where = "none" if found.layer is None else f"**{found.layer}**"
        depth = "" if found.layer is None else f", {found.layer / found.num_layers:.2f}"
        rows[task].append(f"{where}{depth} ({low} to {high})")
    return _markdown(["task", *TITLES.values()], list(rows.values()))


def scores_table(result: dict[str, Any]) -> str:
    parts = []
    for name, title in TITLES.items():
        rows = []
        for other, task, found in _horizons(result):
            if other == name:
                cells = zip(found.curves["absolute"].mean, found.spread, strict=True)
                shown = [f"{100 * mean:.1f} / {100 * spread:.1f}" for mean, spread in cells]
                rows.append([task.replace("_", " "), *shown])
        parts.append(
            _markdown([title, *(f"L{i}" for i in range(found_layers(result, name)))], rows)
        )
    every = [found for _, _, found in _horizons(result)]
    widest = max(_half_width(found.curves["absolute"]) for found in every)
    parts.append(
        f"{every[0].maps} scenes each; 95 % intervals of the means over scenes are at most "
        f"±{100 * widest:.1f} points."
    )
    return "\n\n".join(parts)


def _half_width(curve: Estimate) -> float:
    """Of the widest interval of a curve."""
    return float(np.max(np.subtract(curve.high, curve.low)) / 2)


def found_layers(result: dict[str, Any], name: str) -> int:
    """Decoder layers of a model."""
    return result["horizons"][name][toy.TASKS[0]]["num_layers"]


def methods_table(result: dict[str, Any]) -> str:
    parts = []
    for task, record in result["sweeps"].items():
        found = Sweep.of_record(record)
        rows = [["none", *(f"{100 * x:.0f}" for x in found.without.mean)]]
        widest = max((row.high - row.low) / 2 for row in found.rows)
        for method in dict.fromkeys(row.method for row in found.rows):
            cells = found.of(method, _BUDGET)
            seeds = len(cells[0].seeds)
            said = f"{method}, ± sd of {seeds} seeds" if seeds > 1 else method
            spread = (f" ±{100 * c.spread:.0f}" if seeds > 1 else "" for c in cells)
            shown = [f"{100 * c.accuracy:.0f}{s}" for c, s in zip(cells, spread, strict=True)]
            rows.append([said, *shown])
        full = 100 * found.accuracy_full.mean[0]
        note = (
            f"{found.samples} scenes, every token {full:.0f} %; 95 % intervals over scenes are at "
            f"most ±{100 * widest:.0f} points."
        )
        head = [task.replace("_", " "), *(f"L{i}" for i in found.layers)]
        parts.append(f"{_markdown(head, rows)}\n\n{note}")
    return "\n\n".join(parts)


def agreement_table(result: dict[str, Any]) -> str:
    """How far random, diversity and attention lie apart before the horizon and beyond it."""
    rows, widths = [], {True: 0.0, False: 0.0}  # of intervals, by being beyond the horizon
    for task, record in result["sweeps"].items():
        found = Sweep.of_record(record)
        measured = Horizon.of_record(result["horizons"]["llava"][task])
        lines = [
            [cell.accuracy for cell in found.of(method, _BUDGET)]
            for method in ("random", "diversity", "topk")
        ]
        apart = 100 * np.ptp(np.array(lines), axis=0)
        edge = found.num_layers if measured.layer is None else measured.layer
        before, beyond = apart[:edge], apart[edge:]
        for row in (row for row in found.rows if row.method != "information"):
            here = row.layer >= edge
            widths[here] = max(widths[here], 50 * (row.high - row.low))
        rows.append(
            [
                task.replace("_", " "),
                "none" if measured.layer is None else str(measured.layer),
                f"{before.max():.0f}",
                f"{before.mean():.0f}",
                f"{beyond.max():.0f}" if len(beyond) else "",
            ]
        )
    head = ["task", "horizon", "before: most", "before: mean of layers", "beyond: most"]
    note = (
        f"95 % intervals of the accuracies compared are at most ±{widths[False]:.0f} points before "
        f"the horizons and ±{widths[True]:.0f} beyond."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def plans_table(result: dict[str, Any]) -> str:
    rows = []
    for name, task in product(TITLES, toy.TASKS):
        for row in result["plans"][name][task]:
            (mean,), (low,), (high,) = (row["gain"][k] for k in ("mean", "low", "high"))
            cells = [f"{100 * row[k]:.1f}" for k in ("alone", "together")]
            gain = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            where = [TITLES[name], task.replace("_", " "), str(row["horizon"])]
            rows.append([*where, f"{row['keep']:g}", *cells, gain])
    head = ["model", "task", "horizon", "keep", "DivPrune", "DivPrune + Random", "gain, points"]
    gains = [
        row["gain"] for tasks in result["plans"].values() for some in tasks.values() for row in some
    ]
    above, below = (sum(g["low"][0] > 0 for g in gains), sum(g["high"][0] < 0 for g in gains))
    mean = 100 * np.mean([g["mean"][0] for g in gains])
    note = (
        f"The interval lies above zero in {above} of {len(gains)} rows and below in {below}; the "
        f"mean of all rows is {mean:+.1f} points."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def versions(result: dict[str, Any], cost: dict[str, Any]) -> str:
    some = Horizon.of_record(result["horizons"]["llava"]["code"])
    return (
        f"Measured with torch {result['torch']}, transformers {result['transformers']} and vtfast "
        f"{result['vtfast']} on a CPU ({result['device']}), fp32: `{result['command']}`, "
        f"`{cost['command']}`. Horizons: {some.samples} scenes a task, scores on {some.maps} of "
        f"them, tolerance {100 * some.tolerance:g} %, confidence {100 * some.confidence:g} %. "
        f"Plans: {result['plan_scenes']} scenes."
    )


def horizons_figure(result: dict[str, Any]) -> Figure:
    """Information and lost accuracy against depth, a line for every task, a column per model."""
    figure = Figure((13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(TITLES), sharex=True, sharey="row")
    colours = dict(zip(toy.TASKS, (f"C{i}" for i in range(len(toy.TASKS))), strict=True))
    for name, task, found in _horizons(result):
        column, depth = list(TITLES).index(name), np.array(found.layers) / found.num_layers
        for row, curve in enumerate(("absolute", "accuracy_loss")):
            ax, one = axes[row, column], found.curves[curve]
            mean, low, high = (100 * np.array(part) for part in (one.mean, one.low, one.high))
            ax.plot(depth, mean, "o-", ms=3, lw=1.3, color=colours[task], label=task)
            ax.fill_between(depth, low, high, color=colours[task], alpha=0.15, lw=0)
            if found.layer is not None:
                ax.axvline(found.layer / found.num_layers, color=colours[task], lw=0.8, ls=":")
        axes[0, column].set_title(TITLES[name], size=10)
        axes[1, column].set_xlabel("depth, layer / layers", size=9)
    axes[0, 0].set_ylabel("mean absolute score, points", size=9)
    axes[1, 0].set_ylabel("accuracy lost without visual tokens, points", size=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure
