"""Draw what a plan kept of each picture: the picture, then one panel per stage, the rest dark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtfast.cli._kept_views import View
from vtfast.information.plotting import INK, PALE

PANEL_INCHES, HEADER_INCHES, DPI = 3.2, 1.04, 150
MOST_ROWS = 8
_TITLE_INCHES = 0.5  # of every row but the first, whose titles are in the header
_LARGEST_SIDE = 1200  # pixels; larger pictures are drawn smaller
_FINEST_LINES = 40  # tokens along a side; with more, grid lines would hide the picture
_VEIL = (0.09, 0.11, 0.14, 0.86)  # RGBA over dropped patches


def draw(views: Sequence[View], heading: str, caption: str) -> Figure:
    """The figure: a row per picture, with one panel for the picture and one per stage.

    At most `MOST_ROWS` pictures are shown; the caption then says how many there are.

    Args:
        views: at least one, all with the same number of stages.
        heading, caption: one line above, one below the panels.
    """
    shown = views[:MOST_ROWS]
    if len(shown) < len(views):
        caption += f"; the first {len(shown)} of {len(views)} pictures"
    panels = 1 + len(shown[0].stages)
    boxes = [_box(*view.grid) for view in shown]
    width = panels * PANEL_INCHES
    height = sum(b[1] + 0.08 * PANEL_INCHES for b in boxes) + HEADER_INCHES
    height += _TITLE_INCHES * (len(shown) - 1)
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.2 / height, heading, ha="center", va="center", size=11, color=INK)
    figure.text(0.5, 0.18 / height, caption, ha="center", va="center", size=8, color=PALE)
    bottom = 0.42 + sum(b[1] + 0.08 * PANEL_INCHES + _TITLE_INCHES for b in boxes)
    for view, (across, down) in zip(shown, boxes, strict=True):
        bottom -= down + 0.08 * PANEL_INCHES + _TITLE_INCHES
        for number in range(panels):
            left = (number + 0.5) * PANEL_INCHES - across / 2
            place = (left / width, bottom / height, across / width, down / height)
            _panel(figure.add_axes(place), view, number)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, `DPI` pixels per inch."""
    figure.savefig(path, format="png", dpi=DPI)


def _box(rows: int, columns: int) -> tuple[float, float]:
    """Width and height of a raster in inches; its longer side fills a panel."""
    unit = 0.92 * PANEL_INCHES / max(rows, columns)
    return columns * unit, rows * unit


def _panel(axes: Axes, view: View, number: int) -> None:
    """The picture (0) or what stage `number` left of it."""
    rows, columns = view.grid
    picture = view.picture.copy()
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    extent = (0, columns, rows, 0)
    axes.imshow(np.asarray(picture), extent=extent, interpolation="nearest", aspect="auto")
    title = f"{view.name}\n{view.tokens} visual tokens"
    if number:
        stage = view.stages[number - 1]
        axes.imshow(_veil(stage.kept, rows, columns), extent=extent, aspect="auto")
        title = f"from layer {stage.layer} on: {stage.method}"
        title += f"\n{len(stage.kept)} of {view.tokens} kept"
    axes.set_xticks(range(columns + 1), [])
    axes.set_yticks(range(rows + 1), [])
    axes.tick_params(length=0)
    if max(rows, columns) <= _FINEST_LINES:
        axes.grid(color="white", linewidth=0.6 * min(1, 8 / max(rows, columns)), alpha=0.35)
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
    axes.set_title(title, size=9.5, color=INK, pad=6)


def _veil(kept: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """RGBA [rows, columns, 4]: transparent where a patch was kept."""
    veil = np.tile(np.array(_VEIL), (rows * columns, 1))
    veil[list(kept), 3] = 0
    return veil.reshape(rows, columns, 4)
