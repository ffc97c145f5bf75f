"""A user's method: the options it declares, what its code is, and a check of what it returns."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError, PlanError
from vtfast.methods.context import SelectionContext
from vtfast.prune import Prune, known_options

Select = Callable[..., Tensor]
_NOTE = "raised in the method "


@dataclass(frozen=True)
class OwnMethod:
    """A user's method. What it returns is checked, and sorted; errors in it tell its name.

    Attributes:
        options: names of the options that its function declares, and whether each has a default;
            None: it declares none, and reads what it wants in `ctx.options`.
    """

    name: str
    select: Select
    options: Mapping[str, bool] | None

    def check(self, stage: Prune) -> None:
        """Refuse a stage with options that are not declared, or without one that has no default.
        Raises PlanError."""
        if self.options is None:
            return
        given = stage.options.keys() - known_options(self.name).keys()
        for option in sorted(given - self.options.keys()):
            raise PlanError(
                f"method {self.name!r} has no option {option!r}; its options are "
                f"{', '.join([*known_options(self.name), *self.options])}"
            )
        for option, has_default in self.options.items():
            if option not in given and not has_default:
                raise PlanError(f"{stage!r}: pass {option}=, which method {self.name!r} needs")

    def __call__(self, ctx: SelectionContext) -> Tensor:
        try:
            own = {name: ctx.options[name] for name in self.options or () if name in ctx.options}
            return self._checked(self.select(ctx, **own), ctx)
        except Exception as error:
            error.add_note(f"{_NOTE}{self.name!r}, which prunes at layer {ctx.layer}")
            raise

    def _checked(self, index: object, ctx: SelectionContext) -> Tensor:
        total = sum(ctx.keep)
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise InputError(
                f"method {self.name!r} returned {got}; return a tensor of int32 or int64 rows"
            )
        if index.shape != (total,):
            raise InputError(
                f"method {self.name!r} returned shape {tuple(index.shape)} at layer {ctx.layer}; "
                f"expected ({total},): ctx.keep={ctx.keep}"
            )
        index = index.to(ctx.segments.device).sort().values
        if index.device.type == "cpu":
            self._check_rows(index.numpy(), ctx)
        return index

    def _check_rows(self, rows: np.ndarray, ctx: SelectionContext) -> None:
        """Refuse repeated rows, and more or fewer rows of a segment than `ctx.keep` says."""
        distinct = (np.diff(rows) > 0).all()
        found = np.diff(np.searchsorted(rows, np.array(ctx.segments.offsets)))
        if not distinct or tuple(found) != ctx.keep:
            raise InputError(
                f"method {self.name!r} returned {'' if distinct else 'repeated '}rows at layer "
                f"{ctx.layer}: {tuple(found.tolist())} per segment, expected ctx.keep="
                f"{ctx.keep}; return exactly ctx.keep[i] distinct rows of segment i"
            )


def was_raised_in_a_method(error: BaseException) -> bool:
    """Whether an error came out of a user's method."""
    return any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ()))


def declared_options(function: Select) -> dict[str, bool] | None:
    """The parameters that a function takes by name alone, and whether each has a default; None if
    there are none, or any name is taken."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some functions that are not written in Python
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = {p.name: p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
    return named or None


def code_of(function: Callable[..., Any]) -> str:
    """A short hash of what a function is: its source, and what `functools.partial` gave it.

    So a log notices that it was edited. What it calls and what it closes over does not count.
    """
    return sha256("\n".join(_written(function)).encode()).hexdigest()[:12]


def _written(function: Any) -> Iterator[str]:
    if isinstance(function, partial):
        yield repr((function.args, sorted(function.keywords.items())))
        function = function.func
    for part in (inspect.unwrap(function), type(function)):  # an object is told by its class
        try:
            yield inspect.getsource(part)
            return
        except OSError:  # typed into an interpreter
            if hasattr(part, "__code__"):
                yield from _compiled(part.__code__)
                return
        except TypeError:
            continue
    yield repr(type(function))


def _compiled(code: CodeType) -> Iterator[str]:
    yield repr((code.co_code, code.co_names))
    for constant in code.co_consts:
        yield from _compiled(constant) if isinstance(constant, CodeType) else [repr(constant)]
