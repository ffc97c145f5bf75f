"""The model that --model, --device and --dtype name: hub ids, folders, and bundled tiny models."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vtfast import toy
from vtfast.cli._terminal import working
from vtfast.errors import InputError
from vtfast.inputs import checkpoints
from vtfast.inputs.checkpoints import Checkpoint, quiet
from vtfast.inputs.devices import device_named

_TOY = "toy-"


def find(name: str, stderr: Console) -> Checkpoint:
    """The checkpoint of that name; a bundled one, which is small, comes with its model in memory.

    Raises InputError and UnsupportedModelError as `vtfast.inputs.checkpoints.find` does.
    """
    with quiet(), working(stderr, f"looking at {name}"):
        if not name.startswith(_TOY) or Path(name).exists():
            return checkpoints.find(name)
        try:
            model, processor = toy.load(name)
        except InputError as error:
            raise InputError(f"--model {name}: {error}") from None
        return Checkpoint(name, model.config, processor, model=model)


@contextmanager
def loaded(checkpoint: Checkpoint, device: str, dtype: str, stderr: Console) -> Iterator[Any]:
    """The model in eval mode on a device; while it is used, transformers logs only errors.

    Raises InputError if it cannot be loaded, or if it or its activations do not fit in memory.
    """
    place = device_named(device)
    try:
        with quiet(bars=stderr.is_terminal):
            model = checkpoint.weights(place, dtype)
        with quiet():
            yield model
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise InputError(
            f"--model {checkpoint.name} does not fit: {reason}; pass --dtype bfloat16, a smaller "
            "picture or --device cpu"
        ) from None
