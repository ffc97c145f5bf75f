"""Draw what a plan kept: the picture, and beside it the patches left after each stage."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL.Image import Image

from vtfast.interview import StageView

PANEL_INCHES, HEADER_INCHES, DPI = 3.2, 1.04, 150
_VEIL = (0.09, 0.11, 0.14, 0.86)  # laid over what was dropped
_INK = "#1f2933"


def draw(
    picture: Image, visual_tokens: int, stages: Sequence[StageView], heading: str, caption: str
) -> Figure:
    """The figure: one square panel for the picture, one per stage, dropped patches veiled.

    Args:
        picture: square; the model sees it as a raster of `visual_tokens` patches, a square number.
        stages: what was kept after each.
        heading, caption: one line above, one below the panels.
    """
    panels = 1 + len(stages)
    width, height = panels * PANEL_INCHES, PANEL_INCHES + HEADER_INCHES
    figure = Figure((width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.2 / height, heading, ha="center", va="center", size=11, color=_INK)
    figure.text(0.5, 0.18 / height, caption, ha="center", va="center", size=8, color="#616e7c")
    side = round(visual_tokens**0.5)
    titles = [f"what the model is given\n{visual_tokens} visual tokens"]
    titles += [
        f"from layer {stage.layer} on: {stage.method}\n{len(stage.kept)} of {visual_tokens} kept"
        for stage in stages
    ]
    for number, title in enumerate(titles):
        left = (number + 0.04) / panels
        bottom, square = 0.42 / height, 0.92 * PANEL_INCHES
        axes = figure.add_axes((left, bottom, square / width, square / height))
        axes.imshow(np.asarray(picture), extent=(0, side, side, 0), interpolation="nearest")
        if number:
            axes.imshow(_veil(stages[number - 1].kept, side), extent=(0, side, side, 0))
        axes.set_xticks(range(side + 1), [])
        axes.set_yticks(range(side + 1), [])
        axes.tick_params(length=0)
        axes.grid(color="white", linewidth=0.6, alpha=0.35)
        for spine in axes.spines.values():
            spine.set_color("#9aa5b1")
        axes.set_title(title, size=9.5, color=_INK, pad=6)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, `DPI` pixels per inch."""
    figure.savefig(path, format="png", dpi=DPI)


def _veil(kept: Sequence[int], side: int) -> np.ndarray:
    """RGBA [side, side, 4]: transparent where a patch was kept."""
    veil = np.tile(np.array(_VEIL), (side * side, 1))
    veil[list(kept), 3] = 0
    return veil.reshape(side, side, 4)
