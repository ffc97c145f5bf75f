"""What a comparison looks like: accuracy against average visual tokens."""

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtfast.evaluation.results import Comparison

_INK, _LINE, _MARKERS = "#1f2933", "#616e7c", "osD^vPX*"


def pareto(found: Comparison) -> Figure:
    """A point with its interval for every row; a line through those that no other beats.

    Points are hollow and of several shapes, as plans of one budget lie on top of one another.
    """
    figure = Figure((8.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    best = sorted((found.of(name) for name in found.pareto), key=lambda row: row.average_tokens)
    axes.plot(
        [row.average_tokens for row in best],
        [100 * row.accuracy for row in best],
        color=_LINE,
        lw=1.2,
        zorder=1,
        label="beaten by no other",
    )
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, row in enumerate(found.rows):
        low, high = (100 * end for end in row.interval)
        accuracy = 100 * row.accuracy
        axes.errorbar(
            row.average_tokens,
            accuracy,
            yerr=[[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]],
            fmt=_MARKERS[number % len(_MARKERS)],
            markersize=8,
            markerfacecolor="none",
            markeredgewidth=1.4,
            color=colours[number % len(colours)],
            elinewidth=0.8,
            capsize=2,
            zorder=2,
            label=row.name,
        )
    axes.set_xlabel("visual tokens of a question, average over layers", color=_INK)
    axes.set_ylabel("accuracy, % (95 % intervals)", color=_INK)
    axes.set_xlim(left=0)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    axes.set_title(f"{found.task}, {found.samples} questions", size=11, color=_INK)
    return figure
