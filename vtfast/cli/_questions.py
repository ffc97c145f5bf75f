"""The questions that --task and --data name, for the commands that know the true answers."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from vtfast.cli._checkpoints import loaded
from vtfast.cli._options import check_not_read
from vtfast.cli._terminal import remark, working
from vtfast.errors import InputError
from vtfast.inputs.checkpoints import Checkpoint, quiet
from vtfast.inputs.data import Dataset, Example
from vtfast.inputs.data_files import read_examples
from vtfast.toy.evaluate import dataset
from vtfast.toy.model import family_of
from vtfast.toy.scene import SQUARE

_SCENES = 100  # drawn unless --samples says otherwise
_BAD_LINES_SHOWN = 3


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
    if bad:
        listed = "; ".join(f"{line.where}: {line.reason}" for line in bad[:_BAD_LINES_SHOWN])
        if len(bad) > _BAD_LINES_SHOWN:
            listed += f"; and {len(bad) - _BAD_LINES_SHOWN} more"
        if not skip_bad:
            raise InputError(f"--data {source}, {listed}; correct them or pass --skip-bad")
        stderr.print(f"{source}: skipped {listed}", markup=False, highlight=False)
    return as_dataset(processor, examples, source.stem, stderr)


def as_dataset(processor: Any, examples: Sequence[Example], task: str, stderr: Console) -> Dataset:
    """The examples as a data set; what it warns of is a line on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asked = Dataset(processor, examples, task)
    for warning in caught:
        remark(stderr, str(warning.message))
    return asked


@contextmanager
def measured(
    checkpoint: Checkpoint, asked: Dataset, device: str, dtype: str, stderr: Console
) -> Iterator[tuple[Any, Callable[[], object]]]:
    """The loaded model, and what to call after each question: it advances a progress bar."""
    bar = working(stderr, asked.task, len(asked))
    with loaded(checkpoint, device, dtype, stderr) as model, bar as tick:
        yield model, tick


def protect(asked: Dataset, out: Path | None, *read: Path | None) -> None:
    """Refuse an --out that would overwrite a picture asked about, or a file of `read`."""
    pictures = (image for example in asked.examples for image in example.images)
    check_not_read(out, [*read, *(image for image in pictures if isinstance(image, Path))])
