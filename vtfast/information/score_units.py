"""Compute the information score of every visual unit (see `vtfast.information.maps`)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vtfast.errors import InputError
from vtfast.information.checks import check_layers, check_options, measured_model
from vtfast.information.maps import InformationMap, PictureScores, joined
from vtfast.information.packing import Kept
from vtfast.information.pictures import Window, check_window
from vtfast.information.probe import Probe, Reading
from vtfast.information.progress import steps
from vtfast.information.records import Records, fingerprint
from vtfast.inputs.data import Dataset

Answers = Sequence[int] | Sequence[Sequence[int]] | Tensor


def score(
    model: Any,
    inputs: Mapping[str, Any] | Dataset,
    answer: Answers | None = None,
    *,
    layers: Sequence[int] | None = None,
    window: int | Window | None = None,
    per: str = "first_token",
    batch: int = 8,
    chunk: int | None = None,
    impl: str = "auto",
    log: Path | str | None = None,
    progress: bool | Callable[[], object] = True,
) -> InformationMap:
    """Compute the information score of every visual unit of every picture, by decoder layer.

    A unit is a visual token or a window of them. All units of a layer run as one packed batch that
    shares the tokens before the first of them; see `vtfast.information.probe`. The model is left as
    it was.

    Args:
        model: a supported model or a wrapper of one (LoRA, DDP), unpatched, in eval mode.
        inputs: a batch as a processor returns it, prompts ending where the answer begins; or a
            `Dataset`, whose samples are scored batch by batch.
        answer: token ids of the true answer, without special tokens: one list for a batch of one,
            else a list for each sample (`answer_ids` makes one from text). A dataset has its own.
        layers: 0-based; those whose input is scored. Default: all.
        window: tokens of a unit: n for n x n, or (rows, columns). Default: 2 x 2, as in the paper,
            where both sides of a picture's grid are at least 24; else one token.
        per: "first_token": p of the first token of the answer, the paper's. "mean_token": the mean
            over all its tokens, each after the true ones before it. (The probability of a whole
            answer of several would hide what single tokens still carry.)
        batch, log: samples of a dataset run together, and a file for its finished samples, as in
            `horizon`.
        chunk: units in a packed batch at most. Default: as many as fit a share of the memory.
            Halved when memory runs out, down to 1.
        impl: "auto" | "eager" | "triton", of the ops.
        progress: True for a bar after two seconds, or a function to call after every layer, or
            with a dataset after every sample.

    Raises:
        InputError: an answer without tokens, a sample without a picture, a layer out of range, a
            bad window; UnsupportedModelError: another model; StateError: a patched one.

    Example:
        >>> scores = information.score(model, inputs, [319]).pictures[0]
        >>> scores.raster()[0, 0].shape      # layer 0 of a 24 x 24 picture in windows of 2 x 2
        (12, 12)
    """
    check_options(per=per, chunk=chunk, impl=impl, batch=batch)
    model, size = measured_model(model), check_window(window)
    wanted = check_layers(layers, model)
    if isinstance(inputs, Dataset):
        if answer is not None:
            raise InputError("a dataset has its own answers; leave the argument answer out")
        return score_dataset(
            model, inputs, wanted, size, per, batch, chunk=chunk, impl=impl, log=log, tick=progress
        )
    if log is not None:
        raise InputError("log goes with a Dataset, and inputs are a batch; leave it out")
    answers = _as_lists(answer)
    probe = Probe(model, inputs, answers, wanted, chunk=chunk, impl=impl)
    return score_probe(probe, wanted, size, per, progress=progress)


def score_dataset(
    model: Any,
    data: Dataset,
    layers: Sequence[int],
    window: Window | None,
    per: str,
    batch: int,
    *,
    chunk: int | None,
    impl: str,
    log: Path | str | None,
    tick: bool | Callable[[], object],
) -> InformationMap:
    """`score` of all samples of a data set, each as if it were alone in its batch."""
    settings = {
        "measures": "scores",
        "model": fingerprint(model),
        "layers": layers,
        "window": window,
        "per": per,
    }

    def measure(block: list[int]) -> list[dict[str, Any]]:
        told = data.batch(block, model.device)
        answers = [ids[:n] for ids, n in zip(told.answers, told.lengths, strict=True)]
        probe = Probe(model, told.inputs, answers, layers, chunk=chunk, impl=impl)
        padding = (told.inputs["attention_mask"] == 0).sum(1).tolist()
        found = score_probe(probe, layers, window, per)
        return [found.only(b, padding[b]).record() for b in range(len(block))]

    records, n = Records(log, settings, data), len(data)
    records.fill((list(range(i, min(i + batch, n))) for i in range(0, n, batch)), measure, tick)
    done, skipped = records.finished()
    maps = [InformationMap.of_record(record) for record in done]
    return joined(maps, sorted(records.done), skipped)


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
    """`score` on a batch that has been run in full.

    Args:
        lengths: tokens of each answer that `per="mean_token"` averages; those after them, such as
            the end-of-sequence token, only count for whether the answer is right.
        maps: whether to score units; without, the result holds only p with and without all visual
            tokens.
    """
    lengths = [len(answer) for answer in probe.answers] if lengths is None else lengths
    counts = [1 if per == "first_token" else n for n in lengths]
    none = np.zeros(0, dtype=np.int64)
    kept = [Kept(b, none, len(answer)) for b, answer in enumerate(probe.answers)]
    windows = [picture.units(window) for picture in probe.pictures] if maps else []
    for picture, (units, _) in zip(probe.pictures, windows, strict=False):
        kept += [Kept(picture.sample, np.sort(unit), counts[picture.sample]) for unit in units]
    with steps(progress, "scoring", len(layers), "layer") as tick:
        readings = probe.follow(layers, kept, tick)

    def value(reading: Reading, sample: int) -> float:
        return sum(reading.p[: counts[sample]]) / counts[sample]

    samples = range(probe.samples)
    p_without = np.array([[value(line[b], b) for b in samples] for line in readings])
    pictures, start = [], probe.samples
    for picture, (units, grid) in zip(probe.pictures, windows, strict=False):
        b, stop = picture.sample, start + len(units)
        p = np.array([[value(r, b) for r in line[start:stop]] for line in readings])
        columns = tuple(tuple(probe.original[b][unit].tolist()) for unit in units)
        found = p - p_without[:, b, None]
        grids = grid, picture.grid
        pictures.append(PictureScores(b, picture.number, found, *grids, columns, picture.part))
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
