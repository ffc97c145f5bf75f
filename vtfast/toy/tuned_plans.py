"""Tuned plans against the paper's default on the bundled models: what docs/tuning.md shows.

For each task of each model, and for all its tasks together, the search of `vtfast.tune` looks for
the cheapest plan that is shown to lose at most a hundredth of the answers: once among all plans of
its space, and once among `divprune+random` with the measured horizon at budgets of every size. Both
are then asked new scenes.

    python -m vtfast.toy.tuned_plans --out bench/results/tuned_plans.json --picture docs/tuned.png

A run that was stopped goes on after the last task in the file; models can run side by side. It
took 25 minutes a model on one core of a busy Xeon.
"""

import argparse
import itertools
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from vtfast import __version__, toy
from vtfast.information import Dataset
from vtfast.information.progress import steps
from vtfast.information.shares import bounds_of_true_loss
from vtfast.plan import Plan
from vtfast.plan_file import stage_record
from vtfast.prune import Prune
from vtfast.toy.evaluate import dataset
from vtfast.toy.methods import Encoded
from vtfast.toy.model import family_of
from vtfast.toy.tuning import compared, sizes_of
from vtfast.tuning.find_plan import METHODS
from vtfast.tuning.search import Counts, bounds_of, horizon_of, search
from vtfast.tuning.space import Costs, named, space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("llava", "qwen", "qwen3")
ALL = "all six"
MAX_LOSS, CONFIDENCE = 0.01, 0.95
QUESTIONS, SEED = 1200, 41  # to tune on; as many of the next seed are new
BUDGETS = tuple(n / 40 for n in range(1, 40))  # of the default: its average share of the tokens
_FOR_HORIZON = 64
_TOGETHER = 128  # the most questions of a batch


class Answers:
    """Which questions a model answers right under each plan, as a search asks for them: the first
    8, 16, 32, … of the first half, or all of a half. Each is asked once under a plan."""

    def __init__(self, model: Any, asked: Dataset) -> None:
        n, self.half, self.made = len(asked), len(asked) // 2, 0
        ends = [
            end for end in (0, 8, 16, 32, 64, *range(_TOGETHER, n, _TOGETHER)) if end < self.half
        ]
        ends += [*range(self.half, n, _TOGETHER), n]
        blocks = [range(a, b) for a, b in itertools.pairwise(ends)]
        self._encoded = [(block, Encoded(model, asked, block)) for block in blocks]
        self._known: dict[object, list[bool]] = {}

    def right(self, plan: Plan | None, questions: Sequence[int]) -> list[bool]:
        """Whether each of these is answered right; plan None: unpruned."""
        found: list[bool] = []
        for block, encoded in self._encoded:
            stages = None if plan is None else plan.stages
            key = block, stages
            if block.start in questions and key not in self._known:
                self._known[key] = encoded.right(stages)
                self.made += len(block)
            found += self._known[key] if block.start in questions else []
        return found[: len(questions)]

    def counts(self, plan: Plan, questions: Sequence[int]) -> Counts:
        """Answers under a plan against those of the unpruned model."""
        full, own = (np.array(self.right(one, questions)) for one in (None, plan))
        return compared(full, own)


def measure_task(
    name: str, model: Any, processor: Any, task: str, n: int = QUESTIONS
) -> dict[str, Any]:
    """The tuned plan and the best of the default ones, for JSON.

    task: one of `toy.TASKS`, or `ALL`. n: questions to tune on, and as many new ones.
    """
    layers = model.config.text_config.num_hidden_layers
    asked, new = (_questions(model, processor, task, n, seed) for seed in (SEED, SEED + 1))
    answers = Answers(model, asked)
    first = range(1, layers)
    dropped = [named((Prune(layer, "drop", 0),)) for layer in first]
    found_at = horizon_of(
        first,
        lambda i, some: answers.counts(dropped[i], some),
        range(min(_FOR_HORIZON, answers.half)),
        MAX_LOSS,
    )
    costs = Costs(model.config, Counter(sizes_of(model, asked)))
    measured = measured_horizon(name, model, task)
    among = {
        "tuned": space(layers, found_at, METHODS),
        "default": [
            named(
                Plan.preset("divprune+random", num_layers=layers, keep=b, horizon=measured).stages
            )
            for b in BUDGETS
        ],
    }
    row: dict[str, Any] = {"model": name, "task": task, "horizon": measured}
    with_new = Answers(model, new)
    for key, plans in among.items():
        row[key] = _best(sorted(plans, key=costs.flops), costs, answers, with_new)
    return row


def _best(
    plans: Sequence[Plan], costs: Costs, answers: Answers, new: Answers
) -> dict[str, Any] | None:
    """The plan that is found among these, cheapest first; what it costs, and loses of new answers;
    None if there is none."""
    n, before = 2 * answers.half, answers.made
    halves = range(answers.half), range(answers.half, n)

    def ask(number: int, questions: Sequence[int]) -> Counts:
        return answers.counts(plans[number], questions)

    found = search([costs.flops(plan) for plan in plans], ask, *halves, MAX_LOSS, CONFIDENCE)
    if not found.passed:
        return None
    plan = plans[min(found.passed)]
    lost, _, gained, _ = new.counts(plan, range(n))
    return {
        "plan": plan.name,
        "stages": [stage_record(stage) for stage in plan.stages],
        "flops": costs.flops(plan),
        "cache": costs.cache(plan),
        "most_lost": bounds_of(found.tested[min(found.passed)], CONFIDENCE)[1],
        "answers": answers.made - before,
        "plans": len(plans),
        "new": {"lost": lost, "gained": gained, "questions": n},
    }


def measured_horizon(name: str, model: Any, task: str) -> int:
    """The measured horizon of a task; where it has none, and of all tasks, the checkpoint's."""
    path = Path(toy.__file__).parent / "checkpoints" / name / "training.json"
    of_task = json.loads(path.read_text())["horizon"].get(task)
    return int(model.config.vtfast_horizon if of_task is None else of_task)


def _questions(model: Any, processor: Any, task: str, n: int, seed: int) -> Dataset:
    sizes = family_of(model).SIZES
    if task != ALL:
        return dataset(processor, task, n, seed, sizes)
    each = [dataset(processor, one, n // len(toy.TASKS), seed, sizes) for one in toy.TASKS]
    in_turn = [
        example for turn in zip(*(part.examples for part in each), strict=True) for example in turn
    ]
    return Dataset(processor, in_turn, ALL, ends=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured, as the Markdown table of docs/tuning.md."""
    head = ("model", "task", "`divprune+random`", "lost", "tuned plan", "FLOPs", "lost", "ratio")
    lines = [head, ["---"] * len(head)]
    for row in rows:
        default, tuned = row["default"], row["tuned"]
        lines.append(
            [
                *(row["model"], row["task"]),
                *(f"{flops(default):.2f}", _lost(default)),
                *(tuned["plan"] if tuned else "none", f"{flops(tuned):.2f}", _lost(tuned)),
                f"{flops(tuned) / flops(default):.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def flops(entry: dict[str, Any] | None) -> float:
    """Of a plan in a row, as a share of the unpruned model's; without a plan that is all."""
    return entry["flops"] if entry else 1.0


def _lost(entry: dict[str, Any] | None) -> str:
    """Of new answers, in percent, with the interval."""
    if entry is None:
        return ""
    new = entry["new"]
    low, high = bounds_of_true_loss(new["lost"], new["gained"], new["questions"], 0.975)
    loss = (new["lost"] - new["gained"]) / new["questions"]
    return f"{100 * loss:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def figure(rows: Sequence[dict[str, Any]]) -> "Figure":
    """FLOPs of the default and of the tuned plan, a line for each task."""
    from vtfast.information import plotting as plot

    names = list(dict.fromkeys(row["model"] for row in rows))
    drawn, panels = plot.panels(len(names), 1, 3.6, 2.7)
    for name, axes in zip(names, panels, strict=True):
        own = [row for row in rows if row["model"] == name]
        for height, row in enumerate(own):
            ends = flops(row["default"]), flops(row["tuned"])
            axes.plot(ends, (height, height), color=plot.PALE, lw=1.2, zorder=1)
            for x, colour, mark in zip(ends, (plot.COLOURS[1], plot.COLOURS[0]), "so", strict=True):
                axes.plot(x, height, mark, ms=6, color=colour, zorder=2)
        axes.set_yticks(range(len(own)), [row["task"] for row in own])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.03)
        axes.set_xlabel("arithmetic of a prefill")
        plot.set_title(axes, name)
    first = panels[0].get_lines()
    labels = "divprune+random, measured horizon", "tuned"
    plot.add_legend(drawn, first[1:3], labels, loc="outside lower center", ncols=2)
    return drawn


def main() -> None:
    """Measure, write a JSON object with an entry for each model, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m vtfast.toy.tuned_plans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; other models stay")
    parser.add_argument("--model", choices=MODELS, help="measure this one alone (default: all)")
    parser.add_argument("--picture", type=Path, help="draw all models of the JSON file here")
    given = parser.parse_args()
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}; make it first")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"vtfast": __version__, "machine": platform.machine()}
    for name in [given.model] if given.model else MODELS:
        model, processor = toy.load(name)
        tasks = [*toy.TASKS, ALL]
        with steps(True, name, len(tasks), "task") as tick:
            for task in tasks:
                if (name, task) not in {(row["model"], row["task"]) for row in read(given.out)}:
                    row = measure_task(name, model, processor, task)
                    # Read late: another model may have been measured meanwhile.
                    rows = [*read(given.out), row]
                    found = {"questions": QUESTIONS, "seed": SEED, **versions, "rows": rows}
                    given.out.write_text(json.dumps(found, indent=1) + "\n")
                tick()
    rows = read(given.out)
    if given.picture is not None:
        figure(rows).savefig(given.picture, dpi=150)
    print(table(rows))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows in a file that `main` wrote, in the order of the page; none if there is no file."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    order = [*toy.TASKS, ALL]
    return sorted(rows, key=lambda row: (MODELS.index(row["model"]), order.index(row["task"])))


if __name__ == "__main__":
    main()
