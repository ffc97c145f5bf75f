"""How much of the answer each visual token still carries at each layer: the information score.

    I_i(V_k) = p(y | text, and from layer i on only V_k) - p(y | from layer i on only text)

A layer's score is that of its *input*: visual tokens other than V_k are removed before decoder
layer i, physically, and what stays keeps its position. y is the first token of the true answer and
p an fp32 softmax over the vocabulary. Source: arXiv 2512.07580, section on the information score,
as its released code computes it. It needs the answer: a tool to look with, not to prune with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from vtfast.errors import InputError
from vtfast.information.checks import check_layers, check_options
from vtfast.information.packing import Kept
from vtfast.information.pictures import Grid, Window, check_window
from vtfast.information.probe import Probe, Reading
from vtfast.information.progress import steps

Answers = Sequence[int] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True, eq=False)
class PictureScores:
    """The scores of one image or clip.

    Attributes:
        sample: its row in the batch. `number`: which picture of that row, from 0.
        scores: fp64 [layers, units], units in raster order.
        grid: of units, as steps in time (1 for an image), rows, columns.
        token_grid: of visual tokens, likewise.
        columns: of each unit, where its tokens stand in the input row.
    """

    sample: int
    number: int
    scores: np.ndarray
    grid: Grid
    token_grid: Grid
    columns: tuple[tuple[int, ...], ...]

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
class InformationMap:
    """Scores of a batch.

    Attributes:
        layers: scored ones, ascending; `num_layers` the model has.
        per: "first_token" or "mean_token".
        pictures: in reading order, sample by sample.
        p_full: fp64 [samples], p of the answer with every token.
        p_without: fp64 [layers, samples], p without any visual token from the layer on.
        right_full, right_without: bool [samples], [layers, samples]: whether every token of the
            answer is the likeliest after the true ones before it, so that greedy decoding says it.
        model_type: in the model's configuration.
    """

    layers: tuple[int, ...]
    num_layers: int
    per: str
    pictures: tuple[PictureScores, ...]
    p_full: np.ndarray
    p_without: np.ndarray
    right_full: np.ndarray
    right_without: np.ndarray
    model_type: str

    def of(self, sample: int) -> np.ndarray:
        """Scores of all units of a sample, fp64 [layers, units], its pictures side by side."""
        return np.concatenate([p.scores for p in self.pictures if p.sample == sample], axis=1)

    def record(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        return {
            "layers": list(self.layers),
            "num_layers": self.num_layers,
            "model_type": self.model_type,
            "per": self.per,
            "p_full": self.p_full.tolist(),
            "p_without": self.p_without.tolist(),
            "right_full": self.right_full.tolist(),
            "right_without": self.right_without.tolist(),
            "pictures": [
                {
                    "sample": p.sample,
                    "number": p.number,
                    "grid": list(p.grid),
                    "token_grid": list(p.token_grid),
                    "columns": [list(unit) for unit in p.columns],
                    "scores": p.scores.tolist(),
                }
                for p in self.pictures
            ],
        }

    def save(self, path: Path | str) -> None:
        """Write `record` as JSON."""
        Path(path).write_text(json.dumps(self.record()) + "\n")

    def draw(self, path: Path | str, pictures: Sequence[Image]) -> None:
        """Write the scores over the pictures, in the order of `self.pictures`, as PNG, and
        `record` as JSON beside it. Needs matplotlib."""
        from vtfast.information import figures

        figures.save(figures.heat(self, pictures), path, self.record())

    @staticmethod
    def load(path: Path | str) -> "InformationMap":
        """What `save` wrote, every number as it was."""
        r = json.loads(Path(path).read_text())
        pictures = tuple(
            PictureScores(
                p["sample"],
                p["number"],
                np.array(p["scores"]),
                tuple(p["grid"]),
                tuple(p["token_grid"]),
                tuple(map(tuple, p["columns"])),
            )
            for p in r["pictures"]
        )
        arrays = ("p_full", "p_without", "right_full", "right_without")
        return InformationMap(
            layers=tuple(r["layers"]),
            num_layers=r["num_layers"],
            per=r["per"],
            pictures=pictures,
            model_type=r["model_type"],
            **{name: np.array(r[name]) for name in arrays},
        )


def score(
    model: Any,
    inputs: Mapping[str, Any],
    answer: Answers,
    *,
    layers: Sequence[int] | None = None,
    window: int | Window | None = None,
    per: str = "first_token",
    chunk: int | None = None,
    impl: str = "auto",
    progress: bool | Callable[[], object] = True,
) -> InformationMap:
    """The information score of every visual unit of every picture, at every layer asked for.

    All units of a layer run as one packed batch that shares the rows before the first of them; see
    `vtfast.information.probe`. Nothing of the model is changed.

    Args:
        model: a supported model, unpatched, in eval mode.
        inputs: a batch as a processor returns it, prompts ending where the answer begins.
        answer: token ids of the true answer, without special tokens: one list for a batch of one,
            else a list for each sample (`answer_ids` makes one from text).
        layers: 0-based; those whose input is scored. Default: all.
        window: tokens of a unit: n for n x n, or (rows, columns). Default: 2 x 2, as in the paper,
            where both sides of a picture's grid are at least 24; one token below.
        per: "first_token": p of the first token of the answer, the paper's. "mean_token": the mean
            over all its tokens, each after the true ones before it. (The probability of a whole
            answer of several would hide what single tokens still carry.)
        chunk: units in a packed batch at most. Default: as fit a share of the memory. Halved, if
            need be to 1, when memory runs out.
        impl: "auto" | "eager" | "triton", of the ops.
        progress: a bar after two seconds; or a function that is called after every layer.

    Raises:
        InputError: an answer without tokens, a sample without a picture, a layer out of range, a
            bad window; UnsupportedModelError: another model; StateError: a patched one.

    Example:
        >>> scores = information.score(model, inputs, [319]).pictures[0]
        >>> scores.raster()[0, 0].shape      # layer 0 of a 24 x 24 picture in windows of 2 x 2
        (12, 12)
    """
    check_options(per=per, chunk=chunk, impl=impl)
    size, answers = check_window(window), _as_lists(answer)
    wanted = check_layers(layers, model)
    probe = Probe(model, inputs, answers, wanted, chunk=chunk, impl=impl)
    return score_probe(probe, wanted, size, per, progress=progress)


def score_probe(
    probe: Probe,
    layers: Sequence[int],
    window: Window | None,
    per: str,
    *,
    lengths: Sequence[int] | None = None,
    maps: bool = True,
    progress: bool | Callable[[], object] = False,
) -> InformationMap:
    """`score` on a batch that has been run.

    lengths: tokens of each answer that `per="mean_token"` averages; the rest counts for being right
    only. maps: without, no unit is scored, and what is told is what the text alone knows.
    """
    lengths = [len(answer) for answer in probe.answers] if lengths is None else lengths
    counts = [1 if per == "first_token" else n for n in lengths]
    nothing = np.zeros(0, dtype=np.int64)
    kept = [Kept(b, nothing, len(answer)) for b, answer in enumerate(probe.answers)]
    cuts = [picture.units(window) for picture in probe.pictures] if maps else []
    for picture, (units, _) in zip(probe.pictures, cuts, strict=False):
        kept += [Kept(picture.sample, np.sort(unit), counts[picture.sample]) for unit in units]
    with steps(progress, "scoring", len(layers), "layer") as tick:
        readings = probe.follow(layers, kept, tick)

    def value(reading: Reading, sample: int) -> float:
        return sum(reading.p[: counts[sample]]) / counts[sample]

    samples = range(probe.samples)
    p_without = np.array([[value(line[b], b) for b in samples] for line in readings])
    pictures, start = [], probe.samples
    seen = [0] * probe.samples
    for picture, (units, grid) in zip(probe.pictures, cuts, strict=False):
        b, stop = picture.sample, start + len(units)
        p = np.array([[value(r, b) for r in line[start:stop]] for line in readings])
        columns = tuple(tuple(probe.original[b][unit].tolist()) for unit in units)
        found = p - p_without[:, b, None]
        pictures.append(PictureScores(b, seen[b], found, grid, picture.grid, columns))
        seen[b] += 1
        start = stop
    return InformationMap(
        layers=tuple(layers),
        num_layers=probe.num_layers,
        per=per,
        pictures=tuple(pictures),
        p_full=np.array([value(reading, b) for b, reading in enumerate(probe.full)]),
        p_without=p_without,
        right_full=np.array([all(reading.best) for reading in probe.full]),
        right_without=np.array([[all(line[b].best) for b in samples] for line in readings]),
        model_type=probe.model_type,
    )


def _as_lists(answer: Any) -> list[list[int]]:
    """Token ids, a list for each sample."""
    rows = _plain(answer)
    if isinstance(rows, list):
        rows = [_plain(row) for row in rows]
        rows = rows if rows and isinstance(rows[0], list) else [rows]
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and all(type(_plain(token)) is int for token in row) for row in rows
    ):
        raise InputError(f"answer={answer!r}: pass token ids; information.answer_ids makes them")
    return [[int(token) for token in row] for row in rows]


def _plain(value: Any) -> Any:
    """Arrays, tensors and tuples as lists, and their numbers as Python's."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
