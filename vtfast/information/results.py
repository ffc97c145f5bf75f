"""Write the result of a measurement to a file, read it back, and draw it.

A result is a frozen dataclass. Its JSON has a field of the same name for each of its fields, with
tuples and arrays as lists and nested dataclasses as objects. A value is read back as the type of
its field.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import repeat
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np

from vtfast.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130


class Result:
    """Base class of the results: `save`, `load`, `draw`, and the dict they are made of."""

    _INDENT: ClassVar[int | None] = 1  # of the JSON that `save` writes

    def record(self) -> dict[str, Any]:
        """Everything, as a dict that JSON can hold."""
        return _written(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The result that a dict of `record` was made of, also after it was written as JSON.

        Fields that this class does not have are ignored, and one that a file of an earlier release
        lacks has its default. Raises KeyError where another is missing.
        """
        return _read(cls, record)

    def save(self, path: Path | str) -> None:
        """Write `record` to a file as JSON."""
        Path(path).write_text(json.dumps(self.record(), indent=self._INDENT) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote, every number as it was. Raises InputError for another file."""
        try:
            return cls.of_record(json.loads(Path(path).read_text()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path} is not a saved {cls.__name__}; pass a file that {cls.__name__}.save wrote"
            ) from None

    def figure(self, *args: Any, **options: Any) -> "Figure":
        """A matplotlib figure of the result."""
        raise NotImplementedError

    def draw(self, path: Path | str, *args: Any, **options: Any) -> None:
        """Write the figure to a PNG file, and `record` as JSON beside it. Needs matplotlib.

        Further arguments are those of `figure`.
        """
        path = Path(path)
        self.figure(*args, **options).savefig(path, format="png", dpi=_DPI)
        path.with_suffix(".json").write_text(json.dumps(self.record()) + "\n")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first column aligned on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _written(value: Any) -> Any:
    """A value of a field as JSON can hold it."""
    if is_dataclass(value):
        return {field.name: _written(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _written(part) for name, part in value.items()}
    return [_written(part) for part in value] if isinstance(value, tuple | list) else value


def _read(kind: Any, value: Any) -> Any:
    """A value from JSON, converted to the type `kind` of its field."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:  # X | None
        return None if value is None else _read(parts[0], value)
    if value is None:
        raise TypeError("null where a value is needed")
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        named = {
            field.name: _read(kinds[field.name], value[field.name])
            for field in fields(kind)
            if field.name in value or field.default is MISSING
        }
        return kind(**named)  # type: ignore[operator] # a class, not an instance
    if kind is np.ndarray:
        return np.array(value)
    if get_origin(kind) is tuple:
        return tuple(map(_read, repeat(parts[0]) if parts[-1] is ... else parts, value))
    if get_origin(kind) is Mapping:
        return {name: _read(parts[1], part) for name, part in value.items()}
    return value
