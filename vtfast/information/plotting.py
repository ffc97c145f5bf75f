"""Parts that the figures of all results share: axes, colours, and curves over decoder layers."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, PALE, RED = "#1f2933", "#616e7c", "#c0392b"
COLOURS = ("#2f6db3", "#d97925", "#2e8b57", "#8a4fa3", "#b5544b", "#5f6b73", "#b08d2e", "#3fa7a0")


def panels(across: int, down: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `across` by `down` panels of a size in inches, and their axes, row by row."""
    figure = Figure((across * width, down * height + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=PALE)
    return figure, axes


def set_title(ax: Axes, text: str) -> None:
    """Put a title above a panel."""
    ax.set_title(text, size=10, color=INK)


def set_heading(figure: Figure, text: str) -> None:
    """Put a title above the whole figure."""
    figure.suptitle(text, size=11, color=INK)


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
    ax.set_xlabel("decoder layer", size=8, color=PALE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
