"""The pruning methods, and the door for your own: a function from what is there to what stays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError, PlanError
from vtfast.kernels import last_query_scores
from vtfast.kernels._checks import foreign
from vtfast.kernels._threshold import MAX_LENGTH
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select
from vtfast.methods.context import Attention, SelectionContext, Sequences
from vtfast.methods.dart import dart
from vtfast.methods.uniform import uniform

__all__ = ["Attention", "Method", "SelectionContext", "Sequences", "method", "register_method"]

Select = Callable[[SelectionContext], Tensor]


def _takes_all(dtype: torch.dtype, head_size: int) -> str:
    return ""


def _takes_any_head(dtype: torch.dtype, head_size: int) -> str:
    return foreign(dtype)


@dataclass(frozen=True)
class Method:
    """A registered method.

    `needs` says what has to be prepared for it: "scores", "keys". `kernel_limit`: tokens of an
    image (or frame) that its Triton kernel takes; None without a kernel of ours. `beyond`: why its
    kernels cannot work in a model of this dtype and head size, "" if they can.
    """

    name: str
    select: Select
    needs: frozenset[str] = frozenset({"scores", "keys"})
    kernel_limit: int | None = None
    beyond: Callable[[torch.dtype, int], str] = _takes_all


def _random(ctx: SelectionContext) -> Tensor:
    return random_select(
        ctx.segments, ctx.keep, seed=ctx.seed, keys=ctx.keys, stream=ctx.layer, impl=ctx.impl
    )


def _topk(ctx: SelectionContext) -> Tensor:
    return topk_select(ctx.scores, ctx.segments, ctx.keep, impl=ctx.impl)


def _diversity(ctx: SelectionContext) -> Tensor:
    index = diversity_select(ctx.features, ctx.segments, ctx.keep, impl=ctx.impl)
    assert isinstance(index, Tensor)  # not asked for the order
    return index


def _drop(ctx: SelectionContext) -> Tensor:
    return torch.zeros(0, dtype=torch.int32, device=ctx.segments.device)


_BUILT_IN = (
    Method("random", _random, frozenset({"keys"}), MAX_LENGTH),
    Method("topk", _topk, frozenset({"scores"}), MAX_LENGTH, last_query_scores.beyond),
    Method("diversity", _diversity, frozenset(), MAX_LENGTH, _takes_any_head),
    Method("drop", _drop, frozenset()),
    Method("dart", dart, frozenset({"scores"}), MAX_LENGTH),
    Method("uniform", uniform, frozenset()),
)
_METHODS = {method.name: method for method in _BUILT_IN}


def method(name: str) -> Method:
    """The method of this name. Raises PlanError with the names there are."""
    if name in _METHODS:
        return _METHODS[name]
    raise PlanError(
        f"method {name!r} is unknown; methods: {', '.join(sorted(_METHODS))}; "
        "register your own with vtfast.register_method"
    )


def register_method(
    name: str, *, scores: bool = True, replace: bool = False
) -> Callable[[Select], Select]:
    """Register a selection method under a name that `Prune` can use. A decorator.

    Args:
        name: a name no built-in method has.
        scores: whether it reads `ctx.scores` or `ctx.attention`. With False it also works with text
            models whose attention is not understood, and with assisted decoding.
        replace: take the name from a method registered before (a notebook cell run again).

    The function takes a `SelectionContext` and returns `index`: int32|int64 [sum(ctx.keep)], row
    numbers into `ctx.features`, exactly ctx.keep[i] distinct ones out of segment i. Number, dtype
    and shape are checked at every call, the rows themselves on a CPU only (elsewhere that would
    take a read of the device).

    Raises PlanError if the name is taken.

    Example:
        >>> @register_method("largest-norm")
        ... def largest_norm(ctx):
        ...     return vtfast.ops.topk_select(ctx.features.norm(dim=-1), ctx.segments, ctx.keep)
    """
    if not isinstance(name, str) or not name:
        raise PlanError(f"a method's name must be a non-empty string, got {name!r}")
    ours = name in {m.name for m in _BUILT_IN}
    if ours or (name in _METHODS and not replace):
        fix = "choose another" if ours else "choose another, or pass replace=True"
        raise PlanError(f"the method name {name!r} is taken; {fix}")

    def register(select: Select) -> Select:
        needs = {"keys", "scores"} if scores else {"keys"}
        beyond = last_query_scores.beyond if scores else _takes_all
        _METHODS[name] = Method(name, _Checked(name, select), frozenset(needs), beyond=beyond)
        return select

    return register


class _Checked:
    """A user's method, its answer checked and put in order."""

    def __init__(self, name: str, select: Select) -> None:
        self.name, self.inner = name, select

    def __call__(self, ctx: SelectionContext) -> Tensor:
        index = self.inner(ctx)
        total = sum(ctx.keep)
        if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise InputError(
                f"method {self.name!r} returned {got}; return int32 or int64 row numbers, a tensor"
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
        """Costs nothing on a CPU, where nothing has to be waited for."""
        distinct = (np.diff(rows) > 0).all()
        found = np.diff(np.searchsorted(rows, np.array(ctx.segments.offsets)))
        if not distinct or tuple(found) != ctx.keep:
            raise InputError(
                f"method {self.name!r} returned {'' if distinct else 'repeated '}rows at layer "
                f"{ctx.layer}, {tuple(found.tolist())} of the segments where ctx.keep={ctx.keep} "
                "were asked; return exactly ctx.keep[i] distinct rows of segment i"
            )
