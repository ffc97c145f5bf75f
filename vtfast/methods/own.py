"""A user's method: the options it declares, what its code is, and a check of what it returns."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError, PlanError
from vtfast.methods.context import SelectionContext
from vtfast.prune import Prune, known_options

Select = Callable[..., Tensor]
_FUNCTIONS = FunctionType, BuiltinFunctionType, MethodType, partial
_NOTE = "raised in the method "
_TAKEN = ("layer", "method", "keep", "self", *known_options(""))  # of every `Prune`


@dataclass(frozen=True)
class Options:
    """What a function declares: names, each with whether it has a default; `any` other too?"""

    named: tuple[tuple[str, bool], ...]
    any: bool


@dataclass(frozen=True)
class OwnMethod:
    """A user's method. What it returns is checked, and sorted; errors in it tell its name.

    options: what its function declares; None: nothing.
    """

    name: str
    select: Select
    options: Options | None

    def check(self, stage: Prune) -> None:
        """Refuse a stage with options that are not declared, or without one that has no default.
        Raises PlanError."""
        if self.options is None:
            return
        names = [name for name, _ in self.options.named]
        given = _own(stage.options)
        for option in () if self.options.any else sorted(given.keys() - set(names)):
            raise PlanError(
                f"method {self.name!r} has no option {option!r}; its options are "
                f"{', '.join([*known_options(self.name), *names])}"
            )
        for option, has_default in self.options.named:
            if option not in given and not has_default:
                raise PlanError(f"{stage!r}: pass {option}=, which method {self.name!r} needs")

    def __call__(self, ctx: SelectionContext) -> Tensor:
        try:
            given = {} if self.options is None else _own(ctx.options)
            return self._checked(self.select(ctx, **given), ctx)
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


def _own(options: Mapping[str, object]) -> dict[str, Any]:
    """Those of a stage's options that vtfast itself does not read."""
    return {name: options[name] for name in options if name not in known_options("")}


def was_raised_in_a_method(error: BaseException) -> bool:
    """Whether an error came out of a user's method."""
    return any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ()))


def declared_options(name: str, function: Select) -> Options | None:
    """What a function takes after `ctx`: names, and whether each has a default. None: it takes
    nothing more, and reads `ctx.options` if it wants any.

    A name that begins with an underscore is no option. Raises PlanError for a name that `Prune`
    has too.
    """
    try:
        _, *parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some functions that are not written in Python
        return None
    variable = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    named = {
        p.name: p.default is not p.empty
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and not p.name.startswith("_")
    }
    if taken := [option for option in named if option in _TAKEN]:
        raise PlanError(
            f"method {name!r} has an option {taken[0]!r}, which Prune has for every method; give "
            "it another name"
        )
    return Options(tuple(named.items()), bool(variable)) if named or variable else None


def code_of(function: Any) -> str:
    """A short hash of what a function is: its compiled code, its defaults, and the functions and
    plain values that it closes over, that `functools.partial` gave it, or that are the attributes
    of an object that can be called.

    So a log notices that it was edited, or that Python is another release. Functions that it calls
    by their global names do not count, and of other objects their class alone does.
    """
    parts = [function]
    if not isinstance(function, _FUNCTIONS):
        parts += [type(function).__call__, getattr(function, "__dict__", {})]
    return sha256("\n".join(_told(parts, set())).encode()).hexdigest()[:12]


def _told(value: Any, seen: set[int]) -> Iterator[str]:
    """A value in words that are the same in every process."""
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        yield repr(value)
    elif id(value) not in seen:
        seen.add(id(value))
        yield type(value).__qualname__
        for part in _parts(value):
            yield from _told(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    """What a value is made of, as far as a log goes by it."""
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, set | frozenset):  # in an order of their own in every process
        return sorted(value, key=repr)
    if isinstance(value, tuple | list):
        return value
    if isinstance(value, CodeType):
        return value.co_code, value.co_consts, value.co_names, value.co_varnames
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return value.__code__, value.__defaults__, value.__kwdefaults__, cells
    if isinstance(value, BuiltinFunctionType):
        return [value.__qualname__]
    return ()


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (to read it is the question)
    except ValueError:
        return False
    return True
