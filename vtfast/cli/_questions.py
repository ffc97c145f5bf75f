"""The questions that --task and --data name, for the commands that know the true answers."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vtfast.cli._checkpoints import loaded
from vtfast.cli._terminal import remark, working
from vtfast.cli._values import check_not_read
from vtfast.errors import InputError
from vtfast.inputs.checkpoints import Checkpoint, quiet
from vtfast.inputs.data import Dataset, Example, Skipped
from vtfast.inputs.data_files import read_examples
from vtfast.toy.evaluate import dataset
from vtfast.toy.model import family_of
from vtfast.toy.scene import SQUARE

_SCENES = 100  # drawn unless --samples says otherwise
_BAD_LINES_SHOWN, _SKIPPED_SHOWN = 3, 20


def questions(
    checkpoint: Checkpoint,
    source: str | Path,
    samples: int | None,
    seed: int,
    skip_bad: bool,
    stderr: Console,
    image_folder: Path | None = None,
) -> Dataset:
    """Questions with true answers: about drawn scenes if `source` is a task, else from a file.

    image_folder: what paths of pictures in the file are relative to; None: the file's folder.
    """
    processor = checkpoint.processor
    with quiet(), working(stderr, f"reading {source}"):
        if isinstance(source, str):
            bundled = checkpoint.model is not None
            sizes = family_of(checkpoint.model).SIZES if bundled else (SQUARE,)
            return dataset(processor, source, samples or _SCENES, seed, sizes, ends=bundled)
        examples, bad = read_examples(
            source, processor.tokenizer, folder=image_folder, most=samples
        )
    if bad and not skip_bad:
        listed = "; ".join(f"{line.where}: {line.reason}" for line in bad[:_BAD_LINES_SHOWN])
        if len(bad) > _BAD_LINES_SHOWN:
            listed += f"; and {len(bad) - _BAD_LINES_SHOWN} more"
        raise InputError(f"--data {source}, {listed}; correct them or pass --skip-bad")
    asked = as_dataset(processor, examples, source.stem, stderr, skip_bad)
    asked.skipped += [Skipped(f"{source.name} {line.where}", line.reason) for line in bad]
    return asked


def as_dataset(
    processor: Any,
    examples: Sequence[Example],
    task: str,
    stderr: Console | None,
    skip_bad: bool = False,
) -> Dataset:
    """The examples as a data set; what it warns of is a line on stderr (None: is said already)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asked = Dataset(processor, examples, task, skip_bad=skip_bad)
    for warning in caught:
        if stderr is not None:
            remark(stderr, str(warning.message))
    return asked


def report_skipped(skipped: Sequence[Skipped], stderr: Console) -> None:
    """Say which samples a measurement left out, and why."""
    if skipped:
        stderr.print(f"Skipped {len(skipped)} of the samples:")
    for sample in skipped[:_SKIPPED_SHOWN]:
        stderr.print(f"  {sample}", markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > _SKIPPED_SHOWN:
        stderr.print(f"  and {len(skipped) - _SKIPPED_SHOWN} more; --json names all of them")


@contextmanager
def measured(
    checkpoint: Checkpoint,
    asked: Dataset,
    device: str,
    dtype: str,
    stderr: Console,
    steps: int | None = None,
) -> Iterator[tuple[Any, Callable[[], object]]]:
    """The loaded model, and what to call after each step, of as many as there are questions unless
    told: it advances a progress bar."""
    bar = working(stderr, asked.task, len(asked) if steps is None else steps)
    with loaded(checkpoint, device, dtype, stderr) as model, bar as tick:
        yield model, tick


def protect(asked: Dataset, out: Path | None, *read: Path | None, option: str = "--out") -> None:
    """Refuse an --out that would overwrite a picture asked about, or a file of `read`."""
    pictures = (image for example in asked.examples for image in example.images)
    check_not_read(out, [*read, *(image for image in pictures if isinstance(image, Path))], option)
