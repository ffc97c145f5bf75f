"""The result of comparing plans: a table, computed from the records of the questions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from vtfast.information.results import Result, text_table
from vtfast.information.shares import wilson
from vtfast.inputs.data import Skipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Row:
    """Accuracy and cost of one plan; the first row of a comparison is the unpruned model.

    Attributes:
        plan: stage by stage, in words; None for the unpruned model.
        correct: answers that are right, of `samples`.
        lost, gained: questions that the unpruned model answers and this plan does not, and the
            other way round.
        average_tokens: visual tokens of a question as they ran, averaged over layers and questions.
        flops_ratio: multiply-adds of the decoder layers in prefill (see `Plan.flops_ratio`), as a
            share of the unpruned model's.
        time_ratio: time of `generate`, pictures' encoding included, as a share of the unpruned
            model's on the same batch; median over questions. `seconds`: per question.
        kv_bytes: of keys and values allocated when an answer is finished, per question.
    """

    name: str
    plan: str | None
    samples: int
    correct: int
    lost: int
    gained: int
    average_tokens: float
    flops_ratio: float
    time_ratio: float
    seconds: float
    kv_bytes: float

    @property
    def accuracy(self) -> float:
        """Share of the questions answered right."""
        return self.correct / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy."""
        return wilson(self.accuracy, self.samples)


@dataclass(frozen=True)
class Comparison(Result):
    """Plans on the same questions: a row for the unpruned model, then one for each plan.

    Attributes:
        skipped: questions that could not be asked, and why; they are not in `samples`.
    """

    rows: tuple[Row, ...]
    task: str
    model_type: str
    num_layers: int
    samples: int
    settings: Mapping[str, Any]
    skipped: tuple[Skipped, ...] = ()

    def of(self, name: str) -> Row:
        """The row of a plan by its name; "unpruned" is the model as it is."""
        return next(row for row in self.rows if row.name == name)

    @property
    def pareto(self) -> tuple[str, ...]:
        """Names of the Pareto-optimal rows, accuracy against tokens: no other row is as accurate
        with fewer tokens, or more accurate with no more."""

        def dominated(row: Row) -> bool:
            return any(
                (o.correct >= row.correct and o.average_tokens < row.average_tokens)
                or (o.correct > row.correct and o.average_tokens <= row.average_tokens)
                for o in self.rows
            )

        return tuple(row.name for row in self.rows if not dominated(row))

    def record(self) -> dict[str, Any]:
        """Everything, as a dict that JSON can hold; each row with its accuracy and interval too."""
        found = super().record()
        for row, written in zip(self.rows, found["rows"], strict=True):
            low, high = row.interval
            written |= {"accuracy": row.accuracy, "low": low, "high": high}
            written["pareto"] = row.name in self.pareto
        return found

    def figure(self) -> "Figure":
        """Accuracy against average visual tokens: a point with its interval for every row.

        Rows of one plan at several budgets have one colour and one shape, and a thin line; a grey
        one joins the Pareto-optimal rows. Points are hollow and of several shapes, because those of
        plans with one budget overlap.
        """
        from vtfast.information import plotting as plot

        figure, (axes,) = plot.panels(1, 1, 8.2, 4.1)
        best = sorted((self.of(name) for name in self.pareto), key=lambda row: row.average_tokens)
        axes.plot(
            [row.average_tokens for row in best],
            [100 * row.accuracy for row in best],
            color=plot.PALE,
            alpha=0.3,
            lw=5,  # shows under the line of a plan that is on it
            zorder=1,
            label="Pareto-optimal",
        )
        for number, (name, rows) in enumerate(self._by_plan().items()):
            rows = sorted(rows, key=lambda row: row.average_tokens)
            accuracies = [100 * row.accuracy for row in rows]
            ends = np.array([row.interval for row in rows]).T * 100
            axes.errorbar(
                [row.average_tokens for row in rows],
                accuracies,
                yerr=np.maximum(0.0, [accuracies - ends[0], ends[1] - accuracies]),
                fmt=_MARKERS[number % len(_MARKERS)] + "-",
                lw=0.8,
                markersize=8,
                markerfacecolor="none",
                markeredgewidth=1.4,
                color=plot.COLOURS[number % len(plot.COLOURS)],
                elinewidth=0.8,
                capsize=2,
                zorder=2,
                label=name,
            )
        axes.set_xlabel("visual tokens of a question, average over layers")
        axes.set_ylabel("accuracy, % (95 % intervals)")
        axes.set_xlim(left=0)
        plot.add_legend(figure, loc="outside right upper")
        plot.set_title(axes, f"{self.task}, {self.samples} questions")
        return figure

    def _by_plan(self) -> dict[str, list[Row]]:
        """The rows of each plan: of presets those whose names differ in the budget alone."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            budget = re.search(r"^.*, keep ([\d.]+) on average", row.plan or "")
            ending = f" {float(budget[1]):.3g}" if budget else ""
            found.setdefault(row.name.removesuffix(ending), []).append(row)
        return {name if len(rows) > 1 else rows[0].name: rows for name, rows in found.items()}

    def __str__(self) -> str:
        table = text_table([self.HEAD, *(self.cells(row) for row in self.rows)])
        if not self.skipped:
            return table
        return f"{table}\n{len(self.skipped)} of the questions were skipped: {self.skipped[0]}, …"

    HEAD = ("", "accuracy, %", "lost", "new", "tokens", "FLOPs", "time", "KV MB")

    @staticmethod
    def cells(row: Row) -> tuple[str, ...]:
        """A row as it is shown; `HEAD` names the columns."""
        low, high = row.interval
        return (
            row.name,
            f"{100 * row.accuracy:.1f} ({100 * low:.0f} to {100 * high:.0f})",
            str(row.lost),
            str(row.gained),
            f"{row.average_tokens:.1f}",
            f"{row.flops_ratio:.2f}",
            f"{row.time_ratio:.2f}",
            f"{row.kv_bytes / 1e6:.2f}",
        )


def tabulate(
    records: Sequence[Mapping[str, Any]], plans: Mapping[str, str | None]
) -> tuple[Row, ...]:
    """Compute the rows from the records of the questions; the first plan is the unpruned model.

    A record has `together`, the number of questions in its batch, and in `runs`, by name, an
    answer's `right`, `tokens`, `flops`, `seconds` (of the batch) and `kv_bytes`. A record of vtfast
    0.1 has the number of its batch, `block`, instead.
    """
    sizes = Counter(record.get("block") for record in records)
    together = [record.get("together") or sizes[record["block"]] for record in records]
    names = list(plans)
    full = names[0]
    rows = []
    for name, plan in plans.items():
        runs = [(record["runs"][full], record["runs"][name]) for record in records]
        rows.append(
            Row(
                name=name,
                plan=plan,
                samples=len(records),
                correct=sum(own["right"] for _, own in runs),
                lost=sum(whole["right"] and not own["right"] for whole, own in runs),
                gained=sum(own["right"] and not whole["right"] for whole, own in runs),
                average_tokens=mean(own["tokens"] for _, own in runs),
                flops_ratio=sum(o["flops"] for _, o in runs) / sum(w["flops"] for w, _ in runs),
                time_ratio=median(own["seconds"] / whole["seconds"] for whole, own in runs),
                seconds=mean(
                    own["seconds"] / size for (_, own), size in zip(runs, together, strict=True)
                ),
                kv_bytes=mean(own["kv_bytes"] for _, own in runs),
            )
        )
    return tuple(rows)
