"""The four measurements of a data set, each small, in one form."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vtfast
from vtfast import information
from vtfast.information import Dataset, Example
from vtfast.toy import scenes

HOW = {"batch": 2, "progress": False}
LAYERS = {"layers": [6, 7], "window": 8}
STUDIES = {
    "evaluate": lambda *a, **k: vtfast.evaluate(*a, {"half": "uniform"}, **HOW, **k),
    "horizon": lambda *a, **k: information.horizon(*a, maps=2, **LAYERS, **HOW, **k),
    "sweep": lambda *a, **k: information.sweep(
        *a, ["random", "information"], keep=0.25, seeds=2, **LAYERS, **HOW, **k
    ),
    "score": lambda *a, **k: information.score(*a, **LAYERS, **HOW, **k),
}


def examples(folder: Path, n: int) -> list[Example]:
    """Questions about pictures in files; the answer of the sixth has three tokens, others one."""
    found = []
    for i in range(n):
        pictures, questions, answers = scenes(1, i, "code" if i == 5 else "shape_colour")
        pictures[0].save(folder / f"{i}.png")
        found.append(Example((folder / f"{i}.png",), questions[0], answers[0], f"sample {i}"))
    return found


def with_picture(example: Example, folder: Path, size: tuple[int, int]) -> Example:
    """The example with another picture, of which processors may refuse the size."""
    Image.new("RGB", size).save(folder / "other.png")
    return Example((folder / "other.png",), example.question, example.answer, example.name)


def study(
    kind: str, model: Any, processor: Any, asked: list[Example], skip_bad: bool = False, **options
) -> tuple[Any, list[str]]:
    """The result of a measurement, and the names of the samples that were encoded for it."""
    data, names = Dataset(processor, asked, "colours", skip_bad=skip_bad), []
    batch = data.batch

    def noted(block, device):
        names.extend(data.name_of(i) for i in block)
        return batch(block, device)

    data.batch = noted
    return STUDIES[kind](model, data, **options), names


def essence(found: Any) -> np.ndarray:
    """The numbers of a result that depend on its samples alone, not on their order or on times."""
    if isinstance(found, information.Horizon):
        numbers = [found.samples, *found.p_full.mean, *found.accuracy_full.mean]
        numbers += [x for name in ("p_loss", "accuracy_loss") for x in found.curves[name].mean]
    elif isinstance(found, information.Sweep):
        numbers = [found.samples, *found.total, *found.without.mean]
        numbers += [x for row in found.rows for x in (row.accuracy, row.p, row.retained)]
    elif isinstance(found, information.InformationMap):
        order = np.argsort(found.p_full)
        numbers = [*found.p_full[order], *found.p_without[:, order].flatten()]
        numbers += [x for b in order for x in found.of(b).flatten()]
        numbers += [c for b in order for c in found.pictures[b].columns[0]]
    else:
        numbers = [found.samples]
        for row in found.rows:
            numbers += [row.correct, row.lost, row.gained, row.average_tokens, row.flops_ratio]
    return np.array(numbers, dtype=np.float64)
