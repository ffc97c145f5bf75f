"""The log of a long run: its finished samples in a file, so that a stopped run can be continued.

The file has one JSON object per line. The first holds the settings; only a run with equal settings
continues the file. A finished sample is written as a whole line, which is on the disk before the
next sample begins. An incomplete last line is removed and its sample is run again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vtfast.errors import InputError
from vtfast.information.progress import steps


class Records:
    """The finished samples of a run by their numbers, in memory and, with a path, in a file.

    Args:
        path: of the file, new or from an earlier run; None keeps nothing.
        settings: all that the results depend on, as JSON can hold it.

    Attributes:
        done: sample → its record. The first record of a sample counts.

    Raises InputError where the file is the log of another run, or no log.
    """

    def __init__(self, path: Path | str | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[int, dict[str, Any]] = {}
        if self.path is None:
            return
        as_read = json.loads(json.dumps(settings))
        try:
            kept = self._read(as_read) if self.path.exists() else 0
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(kept)
            if not kept:
                self._append([{"settings": as_read}])
        except OSError as error:
            raise self._cannot_write(error) from None

    def add(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        """Append finished samples; those that are there already stay as they are."""
        fresh = {n: dict(record) for n, record in records.items() if n not in self.done}
        if self.path is not None:
            self._append([{"sample": n, **record} for n, record in fresh.items()])
        self.done.update(fresh)

    def fill(
        self,
        blocks: Iterable[list[int]],
        measure: Callable[[list[int]], Iterable[Mapping[str, Any]]],
        progress: bool | Callable[[], object],
        task: str,
        unit: str = "sample",
    ) -> None:
        """Measure what is missing, block by block; `progress` steps once for every sample.

        `measure` takes the numbers of a block's samples and returns their records.
        """
        blocks = list(blocks)
        with steps(progress, task, sum(map(len, blocks)), unit) as tick:
            for block in blocks:
                if any(i not in self.done for i in block):
                    self.add(dict(zip(block, measure(block), strict=True)))
                for _ in block:
                    tick()

    def _append(self, lines: list[dict[str, Any]]) -> None:
        assert self.path is not None
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(map(_line, lines)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # such as a full disk; whole lines stay valid
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self.path}: {error.strerror}; pass another name")

    def _read(self, settings: dict[str, Any]) -> int:
        """Read what an earlier run finished; return how many bytes of the file are whole lines."""
        assert self.path is not None
        found = self.path.read_bytes()
        whole = found[: found.rfind(b"\n") + 1]
        # A file without a whole line must be the beginning of this run's log, or it is left alone.
        ours = bool(whole) or _line({"settings": settings}).startswith(found)
        before: dict[str, Any] = settings
        try:
            for number, line in enumerate(map(json.loads, whole.splitlines())):
                if number:
                    self.done.setdefault(line.pop("sample"), line)
                else:
                    before = dict(line["settings"])
        except (ValueError, KeyError, TypeError, AttributeError):
            ours = False
        if not ours:
            raise InputError(f"{self.path} is not a vtfast log; pass another name")
        for name in {**before, **settings}:
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"{self.path} is the log of a run with {name}={_short(before.get(name))}, and "
                    f"this one has {_short(settings.get(name))}; pass another name, or delete the "
                    "file"
                )
        return len(whole)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def fingerprint(model: Any) -> str:
    """A short hash of a model's weights, made of the first numbers of every parameter."""
    digest = hashlib.sha256()
    parameters = model.named_parameters()
    for name, weight in (part for named in parameters for part in _plain_tensors(*named)):
        head = weight.detach().flatten()[:8].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + head.tobytes())
    return digest.hexdigest()[:16]


def _plain_tensors(name: str, weight: Any) -> Iterator[tuple[str, Tensor]]:
    """A weight itself, or the tensors that a quantized one is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield name, weight
        return
    for part in weight.__tensor_flatten__()[0]:
        yield from _plain_tensors(f"{name}.{part}", getattr(weight, part))
