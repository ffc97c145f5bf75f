"""How accuracy depends on the layer that is pruned, by method: the table of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from vtfast.information.bootstrap import Estimate
from vtfast.information.picks import Cell
from vtfast.information.pictures import Window
from vtfast.information.results import Result, text_table
from vtfast.information.shares import two_sided, wilson
from vtfast.inputs.data import Skipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """Accuracy of one pruning method at one layer and one budget.

    Attributes:
        accuracy: mean over samples and seeds; `low` and `high`: its Wilson score interval over
            samples, which for several seeds is wide rather than narrow.
        seeds: accuracy with each seed; one entry for a method that is not random.
        p: mean probability of the answer.
        retained: mean over samples of the summed information of what was kept; None without scores.
    """

    method: str
    layer: int
    keep: float
    accuracy: float
    low: float
    high: float
    seeds: tuple[float, ...]
    p: float
    retained: float | None

    @property
    def spread(self) -> float:
        """Standard deviation of the accuracy over the seeds; 0 with one."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else 0.0


@dataclass(frozen=True)
class Sweep(Result):
    """A table of accuracies, a `Row` for every method, layer and budget, in this order.

    Attributes:
        accuracy_full: of the model with every token.
        without: accuracy when every visual token is dropped at a layer, one entry per layer.
        total: mean information of all tokens per layer; empty without scores.
        skipped: samples that could not be measured, and why.
    """

    rows: tuple[Row, ...]
    task: str
    model_type: str
    num_layers: int
    layers: tuple[int, ...]
    samples: int
    accuracy_full: Estimate
    without: Estimate
    total: tuple[float, ...]
    per: str
    window: Window | None
    confidence: float
    skipped: tuple[Skipped, ...] = ()

    def of(self, method: str, keep: float) -> list[Row]:
        """The rows of a method at a budget, by layer."""
        return [row for row in self.rows if (row.method, row.keep) == (method, keep)]

    def __str__(self) -> str:
        parts = [f"{self.task}, {self.samples} samples: accuracy in %"]
        methods = list(dict.fromkeys(row.method for row in self.rows))
        for keep in dict.fromkeys(row.keep for row in self.rows):
            columns = [[f"{100 * row.accuracy:.1f}" for row in self.of(m, keep)] for m in methods]
            none = [f"{100 * share:.1f}" for share in self.without.mean]
            rows = zip(map(str, self.layers), none, *columns, strict=True)
            head = f"{100 * keep:g} % kept from layer", "none", *methods
            parts.append(text_table([head, *rows]))
        return "\n".join([*parts, f"with every token: {100 * self.accuracy_full.mean[0]:.1f}"])

    def record(self) -> dict[str, Any]:
        """Everything, as a dict that JSON can hold; each row with its `spread` too."""
        found = super().record()
        for row, written in zip(self.rows, found["rows"], strict=True):
            written["spread"] = row.spread
        return found

    def figure(self) -> "Figure":
        """Accuracy by layer, and below it what information the methods retain.

        The accuracy of a method is a line in the band of its interval over samples; whiskers show
        one standard deviation over its seeds.
        """
        from vtfast.information import plotting as plot

        budgets = list(dict.fromkeys(row.keep for row in self.rows))
        methods = list(dict.fromkeys(row.method for row in self.rows))
        figure, axes = plot.panels(len(budgets), 2 if self.total else 1, 5.2, 3.4)
        full, without = 100 * self.accuracy_full.mean[0], 100 * np.array(self.without.mean)
        for column, keep in enumerate(budgets):
            ax = axes[column]
            plot.set_title(ax, f"{100 * keep:g} % kept from the layer on: accuracy, %")
            ax.axhline(full, color=plot.PALE, lw=0.8, ls="--", label="every token")
            ax.plot(self.layers, without, ":", color=plot.PALE, lw=1.4, label="none")
            for method, colour in zip(methods, cycle(plot.COLOURS), strict=False):
                rows = self.of(method, keep)
                mean, low, high = zip(*((r.accuracy, r.low, r.high) for r in rows), strict=True)
                plot.draw_curve(ax, self.layers, mean, low, high, colour, method)
                if any(len(row.seeds) > 1 for row in rows):
                    points, spread = 100 * np.array(mean), [100 * row.spread for row in rows]
                    ax.errorbar(self.layers, points, spread, fmt="none", ecolor=colour, capsize=2)
            if self.total:
                below = axes[len(budgets) + column]
                plot.set_title(below, "information in what is kept, summed")
                below.plot(
                    self.layers, self.total, "--", color=plot.PALE, lw=0.8, label="every token"
                )
                for method, colour in zip(methods, cycle(plot.COLOURS), strict=False):
                    held = [row.retained or 0.0 for row in self.of(method, keep)]
                    below.plot(self.layers, held, "o-", ms=3, lw=1.4, color=colour, label=method)
                plot.label_layers(below)
        labels = axes[0].get_legend_handles_labels()
        plot.add_legend(figure, *labels, loc="outside right upper")
        about = f"{self.task}, {self.samples} samples, {self.num_layers} layers"
        plot.set_heading(figure, about)
        return figure


def tabulate(
    notes: Sequence[Mapping[str, Any]],
    cells: Sequence[Cell],
    layers: tuple[int, ...],
    confidence: float,
    about: Mapping[str, Any],
) -> Sweep:
    """Compute the table from the records of the samples; no model is run."""
    by_layer = [n for layer in layers for n, cell in enumerate(cells) if cell.layer == layer]
    right, p, held = (
        np.array([note[name] for note in notes], dtype=np.float64)
        for name in ("right", "p", "retained")
    )
    place = {cells[n]: column for column, n in enumerate(by_layer)}
    groups: dict[tuple[str, int, float], list[int]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.layer, cell.keep), []).append(place[cell])
    rows = []
    for (method, layer, share), columns in groups.items():
        mean = _shares(right[:, columns].mean(1)[:, None], confidence)
        rows.append(
            Row(
                *(method, layer, share, mean.mean[0], mean.low[0], mean.high[0]),
                seeds=tuple(right[:, columns].mean(0).tolist()),
                p=float(p[:, columns].mean()),
                retained=float(held[:, columns].mean()) if held.size else None,
            )
        )
    full = np.array([note["right_full"] for note in notes], dtype=np.float64)
    without = np.array([note["right_without"] for note in notes], dtype=np.float64)
    return Sweep(
        rows=tuple(rows),
        layers=layers,
        samples=len(notes),
        accuracy_full=_shares(full[:, None], confidence),
        without=_shares(without, confidence),
        total=tuple(np.mean([note["total"] for note in notes], 0).tolist()),
        confidence=confidence,
        **about,
    )


def _shares(right: np.ndarray, confidence: float) -> Estimate:
    """Means over samples of shares [samples, k], with their intervals."""
    means, z = right.mean(0).tolist(), two_sided(confidence)
    low, high = zip(*(wilson(share, len(right), z) for share in means), strict=True)
    return Estimate(tuple(means), low, high)
