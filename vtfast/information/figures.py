"""What the results look like: curves over layers with their bands, and scores over the picture.

Every function returns a matplotlib figure; `save` writes it, and the result's JSON beside it.
"""

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vtfast.errors import InputError

if TYPE_CHECKING:
    from vtfast.information.bootstrap import Estimate
    from vtfast.information.horizons import Horizon
    from vtfast.information.maps import InformationMap, PictureScores
    from vtfast.information.sweeps import Sweep

DPI = 130
_INK, _PALE, _RULE = "#1f2933", "#616e7c", "#c0392b"
_COLOURS = ("#2f6db3", "#d97925", "#2e8b57", "#8a4fa3", "#b5544b", "#5f6b73", "#b08d2e", "#3fa7a0")
_MOST_LAYERS, _MOST_PICTURES = 6, 8


def curves(found: "Horizon") -> Figure:
    """Information, and what is lost without visual tokens, by layer; the horizon marked."""
    panels = 2 if found.maps else 1
    figure, axes = _figure(panels, 1, 6.2, 3.6)
    names = [("p_loss", "probability of the answer"), ("accuracy_loss", "accuracy")]
    _bands(axes[-1], found, names, 100)
    axes[-1].set_title("Lost without visual tokens from the layer on, points", size=10, color=_INK)
    if found.maps:
        _bands(axes[0], found, [("information", "mean"), ("absolute", "mean absolute")], 100)
        spread = 100 * np.array(found.spread)
        axes[0].plot(found.layers, spread, ":", color=_PALE, label="spread over units", lw=1.2)
        axes[0].set_title("Information of a unit, points of probability", size=10, color=_INK)
    tolerance = 100 * found.tolerance * found.p_full.mean[0]
    for ax in axes:
        ax.axhline(tolerance, color=_PALE, lw=0.8, ls="--", label="tolerance")
        if found.layer is not None:
            ax.axvline(found.layer, color=_RULE, lw=1.4, label=f"horizon, layer {found.layer}")
        ax.legend(fontsize=8, frameon=False)
    _head(figure, f"{found.task}: {found.verdict}, {found.samples} samples")
    return figure


def heat(
    found: "InformationMap", pictures: Sequence[Image.Image], layers: Sequence[int] | None = None
) -> Figure:
    """Scores over the pictures, a row for each picture and a panel for each layer.

    Args:
        pictures: as many as the map has, in its order; of a clip the first frame.
        layers: which to show; by default up to 6 of those scored, evenly.
    """
    if len(pictures) != len(found.pictures):
        raise InputError(
            f"{len(pictures)} pictures for scores of {len(found.pictures)}; pass one for each"
        )
    shown = list(zip(found.pictures, pictures, strict=True))[:_MOST_PICTURES]
    some = np.linspace(0, len(found.layers) - 1, min(_MOST_LAYERS, len(found.layers)))
    wanted = [found.layers[i] for i in some.round().astype(int)] if layers is None else layers
    most = max(float(np.abs(p.scores).max()) for p, _ in shown) or 1.0
    figure, axes = _figure(1 + len(wanted), len(shown), 2.1, 2.5)
    for row, (scores, picture) in enumerate(shown):
        line = axes[row * (1 + len(wanted)) :][: 1 + len(wanted)]
        _panel(line[0], picture, scores, None, most)
        line[0].set_title(f"p = {found.p_full[scores.sample]:.2f} in full", size=9, color=_INK)
        for ax, layer in zip(line[1:], wanted, strict=True):
            i = found.layers.index(layer)
            _panel(ax, picture, scores, i, most)
            p = found.p_without[i, scores.sample]
            ax.set_title(f"layer {layer}\np without = {p:.2f}", size=9, color=_INK)
    _head(figure, f"Information of each unit: red adds to p, blue takes away, full at ±{most:.2f}")
    return figure


def accuracy(found: "Sweep") -> Figure:
    """Accuracy by layer, a line for every method in its interval over samples, with whiskers of one
    standard deviation over its seeds; below it, what information the methods retain."""
    budgets = list(dict.fromkeys(row.keep for row in found.rows))
    methods = list(dict.fromkeys(row.method for row in found.rows))
    figure, axes = _figure(len(budgets), 2 if found.total else 1, 5.2, 3.4)
    for column, keep in enumerate(budgets):
        ax = axes[column]
        full, without = 100 * found.accuracy_full.mean[0], 100 * np.array(found.without.mean)
        ax.axhline(full, color=_PALE, lw=0.8, ls="--", label="every token")
        ax.plot(found.layers, without, ":", color=_PALE, lw=1.4, label="none")
        for method, colour in zip(methods, cycle(_COLOURS), strict=False):
            rows = found.of(method, keep)
            _line(ax, found.layers, [(r.accuracy, r.low, r.high) for r in rows], colour, method)
            if any(len(row.seeds) > 1 for row in rows):
                means, spreads = (
                    [100 * getattr(r, n) for r in rows] for n in ("accuracy", "spread")
                )
                ax.errorbar(found.layers, means, spreads, fmt="none", ecolor=colour, capsize=2)
        ax.set_title(f"{100 * keep:g} % kept from the layer on: accuracy, %", size=10, color=_INK)
        ax.legend(fontsize=8, frameon=False)
        if found.total:
            below = axes[len(budgets) + column]
            below.plot(found.layers, found.total, "--", color=_PALE, lw=0.8, label="every token")
            for method, colour in zip(methods, cycle(_COLOURS), strict=False):
                held = [row.retained or 0.0 for row in found.of(method, keep)]
                below.plot(found.layers, held, "o-", ms=3, lw=1.4, color=colour, label=method)
            below.set_title("information in what is kept, summed", size=10, color=_INK)
            _layers_below(below)
    _head(figure, f"{found.task}, {found.samples} samples, {found.num_layers} layers")
    return figure


def save(figure: Figure, path: Path | str, record: Any) -> None:
    """Write the figure as PNG, and what it shows as JSON beside it."""
    path = Path(path)
    figure.savefig(path, format="png", dpi=DPI)
    path.with_suffix(".json").write_text(json.dumps(record) + "\n")


def _figure(across: int, down: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure((across * width, down * height + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, colors=_PALE)
    return figure, axes


def _head(figure: Figure, text: str) -> None:
    figure.suptitle(text, size=11, color=_INK)


def _bands(ax: Axes, found: "Horizon", names: Sequence[tuple[str, str]], scale: float) -> None:
    for (name, label), colour in zip(names, _COLOURS, strict=False):
        curve: Estimate = found.curves[name]
        points = zip(curve.mean, curve.low, curve.high, strict=True)
        _line(ax, found.layers, list(points), colour, label, scale)
    ax.axhline(0, color=_PALE, lw=0.6)


def _line(
    ax: Axes,
    layers: Sequence[int],
    points: Sequence[tuple[float, float, float]],
    colour: str,
    label: str,
    scale: float = 100,
) -> None:
    mean, low, high = scale * np.array(points).T
    ax.plot(layers, mean, "o-", ms=3, lw=1.4, color=colour, label=label)
    ax.fill_between(layers, low, high, color=colour, alpha=0.18, lw=0)
    _layers_below(ax)


def _layers_below(ax: Axes) -> None:
    ax.set_xlabel("decoder layer", size=8, color=_PALE)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _panel(
    ax: Axes, picture: Image.Image, scores: "PictureScores", layer: int | None, most: float
) -> None:
    """The picture in colour, or in grey under the scores of a layer."""
    _, rows, columns = scores.grid
    extent = (0, columns, rows, 0)
    shade = picture if layer is None else picture.convert("L")
    ax.imshow(np.asarray(shade), extent=extent, cmap="gray", vmin=0, vmax=255, aspect="equal")
    if layer is not None:
        raster = scores.raster()[layer, 0]
        strength = 0.25 + 0.65 * np.abs(raster) / most
        ax.imshow(raster, extent=extent, cmap="RdBu_r", vmin=-most, vmax=most, alpha=strength)
    ax.set_xticks([])
    ax.set_yticks([])
