"""The log of a long run: its finished samples in a file, so that they are measured only once.

The file has one JSON object per line. The first holds the settings; only a run with equal settings
continues the file. Every other line is a finished sample under the key of its content
(`Dataset.keys`), so it does not matter where the sample stands in a data file, nor what else is
there: a run that was stopped, or whose data file was mended, extended, cut or reordered, goes on
with all samples it has. A line is on the disk before the next batch begins. An incomplete last line
is removed and its sample is measured again.

Of several processes each writes a file of its own, `LOG.0`, `LOG.1` and so on, and reads all of
them and `LOG`; any number of processes can continue them.

Logs of vtfast 0.1 number the samples of one data file. They can be continued with this file (those
of `horizon` and `sweep` also with lines added at its end), and are rewritten then.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vtfast.errors import InputError
from vtfast.information.bad_samples import Measure, Record, Samples, finished, measure_batch
from vtfast.information.progress import steps
from vtfast.inputs.data import Skipped

# Settings in logs of vtfast 0.1 that belong to the whole data file, or to nothing any more.
_OF_THE_FILE = ("data", "samples", "processes", "maps")


class Records:
    """The finished samples of a run by their numbers, in memory and, with a path, in files.

    Args:
        path: of the log, new or from an earlier run; None keeps nothing.
        settings: all that a record depends on besides its sample, as JSON can hold it.
        data: the samples.
        before: settings that a log of vtfast 0.1 has instead.
        process: number of this one of several processes.
        adds: whether records of one sample are parts that add up; else the last one counts.

    Attributes:
        done: sample → its record.
        skipped: sample → why it cannot be measured.

    Raises InputError where a file is the log of another run, or no log.
    """

    def __init__(
        self,
        path: Path | str | None,
        settings: Mapping[str, Any],
        data: Samples,
        *,
        before: Mapping[str, Any] | None = None,
        process: int | None = None,
        adds: bool = False,
    ) -> None:
        self._adds = adds
        self.path = None if path is None else Path(path if process is None else f"{path}.{process}")
        self.done: dict[int, Record] = {}
        self.skipped: dict[int, Skipped] = {}
        self._data = data
        if path is None or self.path is None:
            return
        self._settings = json.loads(json.dumps(settings))
        self._settings_of_0_1 = {**self._settings, **json.loads(json.dumps(before or {}))}
        self._keys = data.keys()
        numbers = {key: number for number, key in enumerate(self._keys)}
        begun = False
        for file in _files(Path(path), self.path):
            records, kept = self._read(file)
            for key, record in records:
                if key in numbers:
                    self._note(numbers[key], record)
            if file == self.path:
                begun = bool(kept)
                self._trim(records, kept)
        if not begun:
            self._append([{"settings": self._settings}])

    def add(self, records: Mapping[int, Record]) -> None:
        """Append finished samples."""
        if self.path is not None:
            self._append([{"sample": self._keys[n], **records[n]} for n in records])
        for n, record in records.items():
            self._note(n, record)

    def _note(self, sample: int, record: Record) -> None:
        self.done[sample] = {**self.done.get(sample, {}), **record} if self._adds else record

    def fill(
        self,
        blocks: Iterable[list[int]],
        measure: Measure,
        progress: bool | Callable[[], object],
        unit: str = "sample",
        is_whole: Callable[[Record], bool] = lambda record: True,
    ) -> None:
        """Measure what is missing, block by block; `progress` steps once for every sample.

        `measure` takes the numbers of samples and returns their records. Records that are not
        `is_whole` are made again.
        """
        blocks = list(blocks)
        with steps(progress, self._data.task, sum(map(len, blocks)), unit) as tick:
            for block in blocks:
                missing = [n for n in block if n not in self.done or not is_whole(self.done[n])]
                if missing:
                    records, skipped = measure_batch(missing, measure, self._data)
                    self.add(records)
                    self.skipped |= skipped
                for _ in block:
                    tick()

    def finished(self) -> tuple[list[Record], tuple[Skipped, ...]]:
        """All records in the order of the samples, and what was skipped of the data set.

        Raises InputError where nothing is left.
        """
        return finished(self.done, self.skipped, self._data)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        assert self.path is not None
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(map(_line, lines)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # such as a full disk; whole lines stay valid
            raise _cannot_write(self.path, error) from None

    def _trim(self, records: list[tuple[str, Record]], kept: int | None) -> None:
        """Remove an incomplete last line; write a log of 0.1 (`kept` is None) anew."""
        assert self.path is not None
        try:
            if kept is not None:
                with self.path.open("r+b") as file:
                    file.truncate(kept)
                return
            anew = self.path.with_name(f"{self.path.name}.new")
            lines = [{"settings": self._settings}]
            lines += [{"sample": key, **record} for key, record in records]
            anew.write_bytes(b"".join(map(_line, lines)))
            anew.replace(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def _read(self, file: Path) -> tuple[list[tuple[str, Record]], int | None]:
        """The finished samples in a file by their keys, and how many of its bytes are whole lines.

        None in place of that number: a log of vtfast 0.1.
        """
        try:
            found = file.read_bytes()
        except OSError as error:
            raise _cannot_write(file, error) from None
        whole = found[: found.rfind(b"\n") + 1]
        # A file without a whole line must be the beginning of this run's log, or it is left alone.
        ours = bool(whole) or _line({"settings": self._settings}).startswith(found)
        settings: dict[str, Any] = self._settings
        lines: list[tuple[Any, Record]] = []
        try:
            for number, line in enumerate(map(json.loads, whole.splitlines())):
                if number:
                    lines.append((line.pop("sample"), line))
                else:
                    settings = dict(line["settings"])
        except (ValueError, KeyError, TypeError, AttributeError):
            ours = False
        is_of_0_1 = "data" in settings
        if not ours or not all(type(key) is (int if is_of_0_1 else str) for key, _ in lines):
            raise InputError(f"{file} is not a vtfast log; pass another name")
        self._check(file, settings, self._settings_of_0_1 if is_of_0_1 else self._settings)
        if not is_of_0_1:
            return lines, len(whole)
        samples = settings.get("samples", len(self._keys))
        unchanged = samples <= len(self._keys) and (
            self._data.fingerprint(samples) == settings["data"]
        )
        if not unchanged:
            raise InputError(
                f"{file} is a log of vtfast 0.1, which numbers the samples of one data file, and "
                "this file has others; pass another name, or that file"
            )
        return [(self._keys[number], record) for number, record in lines if number < samples], None

    def _check(self, file: Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
        """Check that a log was written with these settings. Raises InputError."""
        for name in {**before, **settings}:
            if name not in _OF_THE_FILE and before.get(name) != settings.get(name):
                raise InputError(
                    f"{file} is the log of a run with {name}={_short(before.get(name))}, and this "
                    f"one has {_short(settings.get(name))}; pass another name, or delete the file"
                )


def _files(log: Path, own: Path) -> list[Path]:
    """The log and those of its processes, as far as there are any; the own one comes last."""
    named = re.compile(rf"{re.escape(log.name)}(\.\d+)?")
    there = log.parent.iterdir() if log.parent.is_dir() else ()
    return sorted(
        (file for file in there if named.fullmatch(file.name)), key=lambda f: (f == own, f.name)
    )


def _cannot_write(file: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {file}: {error.strerror}; pass another name")


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
