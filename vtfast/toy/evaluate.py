"""Measure a toy model: its accuracy, and the layer from which on it needs no visual tokens.

Everything is measured on scenes drawn from a seed, which are never training pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.logging import tqdm

from vtfast import information
from vtfast.information import Dataset, Example, Horizon
from vtfast.toy import prompt, scenes
from vtfast.toy.model import family_of
from vtfast.toy.scene import SQUARE, Size
from vtfast.toy.tasks import TASKS
from vtfast.toy.words import LONGEST_ANSWER

MAPS = 48  # scenes of a task whose tokens are scored
_BATCH = 50


def dataset(
    processor: Any,
    task: str,
    n: int,
    seed: int,
    sizes: Sequence[Size] = (SQUARE,),
    ends: bool = True,
) -> Dataset:
    """`scenes(n, seed, task, sizes)` as `vtfast.information` takes them.

    An answer is right if the model says it and, with `ends`, stops.
    """
    drawn = zip(*scenes(n, seed, task, sizes), strict=True)
    examples = [
        Example((picture,), question, answer, f"scene {i} of seed {seed}")
        for i, (picture, question, answer) in enumerate(drawn)
    ]
    return Dataset(processor, examples, task, ends=ends)


def accuracy(
    model: Any,
    processor: Any,
    task: str,
    n: int = 500,
    seed: int = 0,
    progress: bool = False,
    sizes: Sequence[Size] = (SQUARE,),
) -> float:
    """Fraction of `scenes(n, seed, task, sizes)` that greedy `generate` answers exactly."""
    right = 0
    for pictures, questions, answers in _batches(task, n, seed, progress, sizes):
        inputs = _inputs(model, processor, pictures, questions)
        rows = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        said = rows[:, inputs["input_ids"].shape[1] :]
        words = processor.batch_decode(said, skip_special_tokens=True)
        right += sum(a == b for a, b in zip(words, answers, strict=True))
    return right / n


def horizon(
    model: Any,
    processor: Any,
    task: str,
    n: int = 500,
    seed: int = 0,
    progress: bool = False,
    sizes: Sequence[Size] = (SQUARE,),
    maps: int = MAPS,
    log: Path | None = None,
) -> Horizon:
    """The measured horizon of `scenes(n, seed, task, sizes)`; see `vtfast.information.horizon`."""
    asked = dataset(processor, task, n, seed, sizes)
    return information.horizon(model, asked, maps=maps, batch=_BATCH, log=log, progress=progress)


def hardest_horizon(horizons: Mapping[str, int | None]) -> int | None:
    """The deepest horizon of the tasks that have one; None if none has."""
    return max((layer for layer in horizons.values() if layer is not None), default=None)


def measure(
    model: Any, processor: Any, n: int, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Accuracy by `generate`, drop-all curve and horizon of every task, as a dict for JSON.

    The scenes are of the sizes that the family is trained on, in turn.
    """
    sizes = family_of(model).SIZES
    asked = (n, seed, progress, sizes)
    exact = {task: accuracy(model, processor, task, *asked) for task in TASKS}
    found = {task: horizon(model, processor, task, *asked) for task in TASKS}
    where = {"scenes_per_task": n, "seed": seed, "sizes": [list(size) for size in sizes]}
    return {"measured_on": where, "accuracy": exact, **record(found)}


def record(horizons: Mapping[str, Horizon]) -> dict[str, Any]:
    """Horizons by task, for the model card; the curves end with the accuracy of the full model."""
    one = horizons[TASKS[0]]
    curves = {}
    for task, found in horizons.items():
        (full,) = found.accuracy_full.mean
        curves[task] = [*(full - loss for loss in found.curves["accuracy_loss"].mean), full]
    return {
        "scenes_scored_per_task": one.maps,
        "horizon": {task: found.layer for task, found in horizons.items()},
        "accuracy_without_visual_tokens_from_layer": curves,
    }


def table(card: Mapping[str, Any]) -> str:
    """The dict of `measure` as a table of text, one line for each task, in percent."""
    curves = card["accuracy_without_visual_tokens_from_layer"]
    layers = len(curves[TASKS[0]]) - 1
    rows = [["task", "exact", "horizon", *(f"L{layer}" for layer in range(layers))]]
    for task in TASKS:
        first = card["horizon"][task]
        shown = [100 * card["accuracy"][task], *(100 * value for value in curves[task][:-1])]
        exact, *dropped = (f"{value:.1f}" for value in shown)
        rows.append([task, exact, "none" if first is None else str(first), *dropped])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.rjust(width) for cell, width in line) for line in lines)


def _inputs(model: Any, processor: Any, pictures: list, questions: list[str]) -> Any:
    texts = [prompt(processor, question) for question in questions]
    images = [[picture] for picture in pictures]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    return inputs.to(model.device)


def _batches(
    task: str, n: int, seed: int, progress: bool, sizes: Sequence[Size]
) -> Iterator[tuple[list, list, list]]:
    """The scenes in batches of one size each, so that sequences are of one length."""
    alike: dict[Size, list[tuple]] = {}
    for scene in zip(*scenes(n, seed, task, sizes), strict=True):
        alike.setdefault(scene[0].size, []).append(scene)
    with tqdm(total=n, desc=task, unit="scene", disable=not progress, leave=False) as bar:
        for group in alike.values():
            for start in range(0, len(group), _BATCH):
                part = group[start : start + _BATCH]
                pictures, questions, answers = map(list, zip(*part, strict=True))
                yield pictures, questions, answers
                bar.update(len(part))
