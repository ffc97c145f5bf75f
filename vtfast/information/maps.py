"""How much of the answer each visual token still carries at each layer: the information score.

    I_i(V_k) = p(y | text, and from layer i on only V_k) - p(y | from layer i on only text)

A layer's score is that of its *input*: visual tokens other than V_k are removed before decoder
layer i, physically, and what stays keeps its position. y is the first token of the true answer and
p an fp32 softmax over the vocabulary. Source: arXiv 2512.07580, section on the information score,
as its released code computes it. It needs the true answer, so it is for analysis, not for pruning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from vtfast.errors import InputError
from vtfast.information.pictures import Grid
from vtfast.information.results import Result
from vtfast.inputs.data import Skipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LAYERS, _MOST_PICTURES = 6, 8  # of a figure
_COLOUR_MAP = "RdBu_r"


@dataclass(frozen=True, eq=False)
class PictureScores:
    """Information scores of one image or clip, or of one of its grids of tokens.

    Attributes:
        sample: which of the batch. `number`: which picture of that sample, from 0. `part`: which
            of its grids, from 0, where it has several (its tiles, for example).
        scores: fp64 [layers, units], units in raster order.
        grid: of units, as steps in time (1 for an image), rows, columns.
        token_grid: of visual tokens, likewise.
        columns: for each unit, the columns of its tokens in the input sequence.
    """

    sample: int
    number: int
    scores: np.ndarray
    grid: Grid
    token_grid: Grid
    columns: tuple[tuple[int, ...], ...]
    part: int = 0

    def raster(self) -> np.ndarray:
        """The scores as fp64 [layers, steps, rows, columns]."""
        return self.scores.reshape(len(self.scores), *self.grid)

    def per_token(self) -> tuple[np.ndarray, np.ndarray]:
        """Columns of all scored tokens, ascending, and their scores [layers, tokens]: a token of a
        window has an equal share of the window's."""
        columns = np.concatenate([np.array(unit) for unit in self.columns])
        sizes = np.array([len(unit) for unit in self.columns])
        order = columns.argsort()
        return columns[order], (self.scores / sizes).repeat(sizes, axis=1)[:, order]


@dataclass(frozen=True, eq=False)
class InformationMap(Result):
    """Information scores of the visual tokens of a batch, by decoder layer.

    Attributes:
        layers: scored ones, ascending; `num_layers` the model has.
        per: "first_token" or "mean_token".
        pictures: in reading order, sample by sample.
        p_full: fp64 [samples], p of the answer with every token.
        p_without: fp64 [layers, samples], p without any visual token from the layer on.
        right_full, right_without: bool [samples], [layers, samples]: whether every token of the
            answer is the likeliest after the true ones before it, so that greedy decoding says it.
        model_type: in the model's configuration.
        numbers: of a data set, which of its samples these are, in order; else empty.
        skipped: those of its samples that could not be measured, and why.
    """

    _INDENT: ClassVar[int | None] = None  # a line for every score would be long

    layers: tuple[int, ...]
    num_layers: int
    per: str
    pictures: tuple[PictureScores, ...]
    p_full: np.ndarray
    p_without: np.ndarray
    right_full: np.ndarray
    right_without: np.ndarray
    model_type: str
    numbers: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def only(self, sample: int, padding: int = 0) -> "InformationMap":
        """The map of one sample, as if its sequence had no `padding` on its left."""
        mine = [
            replace(
                picture,
                sample=0,
                columns=tuple(tuple(c - padding for c in unit) for unit in picture.columns),
            )
            for picture in self.pictures
            if picture.sample == sample
        ]
        which = slice(sample, sample + 1)
        return replace(
            self,
            pictures=tuple(mine),
            p_full=self.p_full[which],
            p_without=self.p_without[:, which],
            right_full=self.right_full[which],
            right_without=self.right_without[:, which],
            numbers=self.numbers[which],
            skipped=(),
        )

    def of(self, sample: int) -> np.ndarray:
        """Scores of all units of a sample, fp64 [layers, units], its pictures side by side."""
        return np.concatenate([p.scores for p in self.pictures if p.sample == sample], axis=1)

    def figure(
        self, pictures: Sequence[Image.Image], layers: Sequence[int] | None = None
    ) -> "Figure":
        """Scores over the pictures: a row for each picture, a panel for each layer.

        Args:
            pictures: as many as the map has, in its order; of a clip the first frame.
            layers: which to show; by default up to 6 of those scored, evenly.
        """
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        from vtfast.information import plotting as plot

        if len(pictures) != len(self.pictures):
            raise InputError(
                f"{len(pictures)} pictures for scores of {len(self.pictures)}; pass one for each"
            )
        shown = list(zip(self.pictures, pictures, strict=True))[:_MOST_PICTURES]
        some = np.linspace(0, len(self.layers) - 1, min(_MOST_LAYERS, len(self.layers)))
        wanted = [self.layers[i] for i in some.round().astype(int)] if layers is None else layers
        most = max(float(np.abs(p.scores).max()) for p, _ in shown) or 1.0
        figure, axes = plot.panels(1 + len(wanted), len(shown), 2.1, 2.5)
        remaining = iter(axes)
        for scores, picture in shown:
            ax, full = next(remaining), self.p_full[scores.sample]
            _show(ax, scores, picture)
            plot.set_title(ax, f"p = {full:.2f} in full")
            for layer in wanted:
                ax, i = next(remaining), self.layers.index(layer)
                _show(ax, scores, picture.convert("L"), scores.raster()[i, 0], most)
                without = self.p_without[i, scores.sample]
                plot.set_title(ax, f"layer {layer}\np without = {without:.2f}")
        scale = ScalarMappable(Normalize(-most, most), _COLOUR_MAP)
        bar = figure.colorbar(scale, ax=axes, shrink=0.8, aspect=15)
        bar.ax.tick_params(labelsize=plot.SMALL, colors=plot.PALE)
        plot.set_heading(figure, "Information of each unit: red adds to p, blue takes away")
        return figure


def joined(
    maps: Sequence[InformationMap], numbers: Sequence[int], skipped: tuple[Skipped, ...]
) -> InformationMap:
    """One map of the samples of a data set, from the maps of each of them alone."""
    return replace(
        maps[0],
        pictures=tuple(
            replace(picture, sample=b) for b, found in enumerate(maps) for picture in found.pictures
        ),
        p_full=np.concatenate([found.p_full for found in maps]),
        p_without=np.concatenate([found.p_without for found in maps], axis=1),
        right_full=np.concatenate([found.right_full for found in maps]),
        right_without=np.concatenate([found.right_without for found in maps], axis=1),
        numbers=tuple(numbers),
        skipped=skipped,
    )


def _show(
    ax: "Axes",
    scores: PictureScores,
    picture: Image.Image,
    raster: np.ndarray | None = None,
    most: float = 1.0,
) -> None:
    """Draw the picture, and over it the scores of a layer, coloured from -most to most."""
    _, rows, columns = scores.grid
    extent = (0, columns, rows, 0)
    ax.imshow(np.asarray(picture), extent=extent, cmap="gray", vmin=0, vmax=255, aspect="equal")
    if raster is not None:
        strength = 0.25 + 0.65 * np.abs(raster) / most
        ax.imshow(raster, extent=extent, cmap=_COLOUR_MAP, vmin=-most, vmax=most, alpha=strength)
    ax.set_axis_off()
