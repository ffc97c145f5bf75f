"""The questions that --task and --data name, for the commands that know the true answers."""

from pathlib import Path

from rich.console import Console

from vtfast.cli._options import check_not_read
from vtfast.cli._terminal import working
from vtfast.errors import InputError
from vtfast.inputs.checkpoints import Checkpoint, quiet
from vtfast.inputs.data import Dataset, read_examples
from vtfast.toy.evaluate import dataset
from vtfast.toy.model import family_of
from vtfast.toy.scene import SQUARE

_SCENES = 100  # drawn unless --samples says otherwise
_BAD_LINES_SHOWN = 3


def questions(
    checkpoint: Checkpoint,
    stderr: Console,
    *,
    task: str | None,
    data: Path | None,
    samples: int | None,
    seed: int,
    skip_bad: bool,
) -> Dataset:
    """Questions about drawn scenes (`task`) or from a file (`data`), with their true answers."""
    with quiet(), working(stderr, f"reading {task or data}"):
        if task is not None:
            bundled = checkpoint.model is not None
            sizes = family_of(checkpoint.model).SIZES if bundled else (SQUARE,)
            n = samples or _SCENES
            return dataset(checkpoint.processor, task, n, seed, sizes, ends=bundled)
        assert data is not None
        examples, bad = read_examples(data, checkpoint.processor.tokenizer)
    if bad:
        listed = "; ".join(f"line {line.number}: {line.reason}" for line in bad[:_BAD_LINES_SHOWN])
        if len(bad) > _BAD_LINES_SHOWN:
            listed += f"; and {len(bad) - _BAD_LINES_SHOWN} more"
        if not skip_bad:
            raise InputError(f"--data {data}, {listed}; correct them or pass --skip-bad")
        stderr.print(f"{data}: skipped {listed}", markup=False, highlight=False)
    return Dataset(checkpoint.processor, examples[:samples], data.stem)


def protect(asked: Dataset, out: Path | None, *read: Path | None) -> None:
    """Refuse an --out that would overwrite a picture asked about, or a file of `read`."""
    pictures = (image for example in asked.examples for image in example.images)
    check_not_read(out, [*read, *(image for image in pictures if isinstance(image, Path))])
