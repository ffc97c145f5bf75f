"""Parts that the figures of all results share: axes, colours, and curves over decoder layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Sizes in points, readable when a figure is shown at half its size.
SMALL, NORMAL, LARGE = 10.5, 11.5, 13
INK, PALE = "#1f2933", "#616e7c"
MARK = "#d55e00"  # a limit, or what was found; no series has this colour
# Of Okabe and Ito, told apart with every kind of colour blindness; then a grey and a brown.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#5f6b73", "#7a4b1e")


def panels(
    across: int, down: int, width: float, height: float, **share: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `across` by `down` panels of a size in inches, and their axes, row by row.

    share: `sharex` and `sharey`, as in matplotlib.
    """
    figure = Figure((across * width, down * height + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False, **share).flatten().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL, colors=PALE)
        ax.xaxis.label.set(size=NORMAL, color=PALE)
        ax.yaxis.label.set(size=NORMAL, color=PALE)
    return figure, axes


def set_title(ax: Axes, text: str) -> None:
    """Put a title above a panel."""
    ax.set_title(text, size=NORMAL, color=INK)


def set_heading(figure: Figure, text: str) -> None:
    """Put a title above the whole figure."""
    figure.suptitle(text, size=LARGE, color=INK)


def add_legend(place: Axes | Figure, *handles_and_labels: Any, **options: Any) -> None:
    """Add a legend without a frame, to a panel or beside all panels (`loc="outside …"`)."""
    place.legend(*handles_and_labels, fontsize=SMALL, frameon=False, **options)


def draw_curve(
    ax: Axes,
    layers: Sequence[int],
    mean: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    label: str,
) -> None:
    """Draw a curve over decoder layers with its confidence band; shares are drawn as percent."""
    percent = 100 * np.array([mean, low, high])
    ax.plot(layers, percent[0], "o-", ms=3, lw=1.4, color=colour, label=label)
    ax.fill_between(layers, percent[1], percent[2], color=colour, alpha=0.18, lw=0)
    label_layers(ax)


def label_layers(ax: Axes) -> None:
    """Label the horizontal axis with whole layer numbers."""
    ax.set_xlabel("decoder layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
