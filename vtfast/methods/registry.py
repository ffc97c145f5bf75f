"""The methods by their names, and `register_method` to add your own."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError, PlanError
from vtfast.kernels import coverage_select, dpp_select, last_query_scores
from vtfast.kernels._checks import why_unsupported_dtype
from vtfast.kernels._threshold import MAX_LENGTH
from vtfast.methods.cdpruner import cdpruner
from vtfast.methods.context import SelectionContext
from vtfast.methods.dart import dart
from vtfast.methods.diversity import diversity
from vtfast.methods.drop import drop
from vtfast.methods.random import random
from vtfast.methods.scope import scope
from vtfast.methods.topk import topk
from vtfast.methods.uniform import uniform
from vtfast.methods.visionzip import visionzip
from vtfast.methods.vispruner import vispruner

Select = Callable[[SelectionContext], Tensor]


def _supports_all(dtype: torch.dtype, head_size: int) -> str:
    return ""


def _supports_all_heads(dtype: torch.dtype, head_size: int) -> str:
    return why_unsupported_dtype(dtype)


@dataclass(frozen=True)
class Method:
    """A pruning method, and what the runtime has to know about it.

    Attributes:
        name: what `Prune` calls it.
        select: the method itself, from a `SelectionContext` to the row numbers that stay.
        needs: what it reads, of "scores", "text", "vision_scores" and "image_hash".
        kernel_limit: most tokens of an image (or frame) that its Triton kernel takes; None if it
            has no kernel in vtfast.
        why_unsupported: why its kernels cannot run in a model of this dtype and head size; "" if
            they can.
    """

    name: str
    select: Select
    needs: frozenset[str] = frozenset({"scores", "image_hash"})
    kernel_limit: int | None = None
    why_unsupported: Callable[[torch.dtype, int], str] = _supports_all

    def __reduce__(self) -> tuple[Callable[[str], "Method"], tuple[str]]:
        """A KV cache that is written down names the methods of its plan; they need not be
        picklable, but registered where it is read."""
        return method, (self.name,)


_BUILT_IN = (
    Method("random", random, frozenset({"image_hash"}), MAX_LENGTH),
    Method(
        "topk",
        topk,
        frozenset({"scores"}),
        MAX_LENGTH,
        last_query_scores.why_unsupported_heads,
    ),
    Method("diversity", diversity, frozenset(), MAX_LENGTH, _supports_all_heads),
    Method("drop", drop, frozenset()),
    Method("dart", dart, frozenset({"scores", "text"}), MAX_LENGTH),
    Method("uniform", uniform, frozenset()),
    Method("cdpruner", cdpruner, frozenset({"text"}), dpp_select.MAX_LENGTH, _supports_all_heads),
    Method(
        "scope",
        scope,
        frozenset({"vision_scores"}),
        coverage_select.MAX_LENGTH,
        _supports_all_heads,
    ),
    Method("visionzip", visionzip, frozenset({"vision_scores"}), MAX_LENGTH),
    Method("vispruner", vispruner, frozenset({"vision_scores"})),
)
_METHODS = {method.name: method for method in _BUILT_IN}


def method(name: str) -> Method:
    """The method registered under this name; PlanError with all names if there is none."""
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(str(name), _METHODS, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise PlanError(
        f"method {name!r} is unknown{hint}; methods: {', '.join(sorted(_METHODS))}; "
        "register your own with vtfast.register_method"
    )


def register_method(
    name: str,
    *,
    scores: bool = True,
    text: bool | None = None,
    vision_scores: bool = False,
    replace: bool = False,
) -> Callable[[Select], Select]:
    """Register a function as a method that `Prune` can use by name. A decorator.

    Args:
        name: a name that no built-in method has.
        scores: whether the function reads `ctx.scores` or `ctx.attention`. A method with False also
            works with text models whose attention vtfast does not know.
        text: whether it reads `ctx.text` or other text; as `scores` unless given. A call in which
            it is unknown where the prompt ends then warns.
        vision_scores: whether it reads `ctx.vision_scores`. Only models whose vision tower vtfast
            knows, and pictures given as pixels, can then be pruned by it.
        replace: replace a method registered before under this name (a notebook cell run again).

    The function takes a `SelectionContext` and returns `index`: int32|int64 `[sum(ctx.keep)]`, row
    numbers into `ctx.features`, exactly ctx.keep[i] distinct ones out of segment i. Dtype and shape
    are checked at every call, the row numbers on a CPU only (on another device the check would have
    to wait for it).

    Raises PlanError if the name is taken.

    Example:
        >>> @register_method("largest-norm")
        ... def largest_norm(ctx):
        ...     return vtfast.ops.topk_select(ctx.features.norm(dim=-1), ctx.segments, ctx.keep)
    """
    if not isinstance(name, str) or not name:
        raise PlanError(f"a method's name must be a non-empty string, got {name!r}")
    built_in = name in {m.name for m in _BUILT_IN}
    if built_in or (name in _METHODS and not replace):
        fix = "choose another" if built_in else "choose another, or pass replace=True"
        raise PlanError(f"the method name {name!r} is taken; {fix}")

    def register(select: Select) -> Select:
        read = {"scores": scores, "text": scores if text is None else text}
        read |= {"vision_scores": vision_scores, "image_hash": True}
        needs = frozenset(name for name, reads in read.items() if reads)
        why = last_query_scores.why_unsupported_heads if scores else _supports_all
        _METHODS[name] = Method(name, _Checked(name, select), needs, why_unsupported=why)
        return select

    return register


@dataclass(frozen=True)
class _Checked:
    """A user's method whose returned index is checked, and sorted."""

    name: str
    select: Select

    def __call__(self, ctx: SelectionContext) -> Tensor:
        index = self.select(ctx)
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
