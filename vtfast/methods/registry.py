"""The methods by their names, and `register_method` to add your own."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vtfast.errors import PlanError
from vtfast.kernels import coverage_select, dpp_select, last_query_scores
from vtfast.kernels._checks import why_unsupported_dtype
from vtfast.kernels._threshold import MAX_LENGTH
from vtfast.methods.cdpruner import cdpruner
from vtfast.methods.dart import dart
from vtfast.methods.diversity import diversity
from vtfast.methods.drop import drop
from vtfast.methods.own import OwnMethod, Select, code_of, declared_options
from vtfast.methods.random import random
from vtfast.methods.scope import scope
from vtfast.methods.topk import topk
from vtfast.methods.uniform import uniform
from vtfast.methods.visionzip import visionzip
from vtfast.methods.vispruner import vispruner
from vtfast.presets import FIRST_STAGES, PRESETS, add_preset
from vtfast.prune import Prune


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
        code: a hash of a user's method; "" for those of vtfast.
    """

    name: str
    select: Select
    needs: frozenset[str] = frozenset({"scores", "image_hash"})
    kernel_limit: int | None = None
    why_unsupported: Callable[[torch.dtype, int], str] = _supports_all
    code: str = ""

    def __reduce__(self) -> tuple[Callable[[str], "Method"], tuple[str]]:
        """A KV cache that is written down names the methods of its plan; they need not be
        picklable, but registered where it is read."""
        return method, (self.name,)

    def check(self, stage: Prune) -> None:
        """Refuse a stage with options that this method does not take. Raises PlanError."""
        if isinstance(self.select, OwnMethod):
            self.select.check(stage)


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
    # A preset may have been meant: the method of its first stage.
    preset = FIRST_STAGES.get(name)
    near = [preset(1.0).method] if preset else difflib.get_close_matches(str(name), _METHODS, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise PlanError(
        f"method {name!r} is unknown{hint}; methods: {', '.join(sorted(_METHODS))}; "
        "register your own with vtfast.register_method (commands: in a file that --import names)"
    )


def written(stage: Prune) -> str:
    """A stage as a log tells it: another one once a user's method was edited."""
    code = method(stage.method).code
    return f"{stage!r}{f' code {code}' if code else ''}"


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
        name: letters, digits, "-", "_" and "."; no name of a built-in method or preset. It is the
            name of a preset too, with +random and +vtw: `vtfast.patch(model, name, keep=0.5)`. Its
            first stage is at layer 0, or at 2 if the function reads scores.
        scores: whether the function reads `ctx.scores` or `ctx.attention`. A method with False also
            works with text models whose attention vtfast does not know.
        text: whether it reads `ctx.text` or other text; as `scores` unless given. A call in which
            it is unknown where the prompt ends then warns.
        vision_scores: whether it reads `ctx.vision_scores`. Only models whose vision tower vtfast
            knows, and pictures given as pixels, can then be pruned by it.
        replace: replace a method registered before under this name (a notebook cell run again).

    The function takes a `SelectionContext`, and the options of its `Prune` if it declares them, as
    in `def mine(ctx, *, weight=0.5)`; others are refused then. It returns `index`:
    int32|int64 `[sum(ctx.keep)]`, row numbers into `ctx.features`, exactly ctx.keep[i] distinct
    ones out of segment i. Dtype and shape are checked at every call, the row numbers on a CPU only
    (on another device the check would have to wait for it).

    An error in the function is raised as it is, with a note that names the method.

    Raises PlanError if the name is taken.

    Example:
        >>> @register_method("largest-norm", scores=False)
        ... def largest_norm(ctx):
        ...     return vtfast.ops.topk_select(ctx.features.norm(dim=-1), ctx.segments, ctx.keep)
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(".json"):
        raise PlanError(
            f'the name of a method is {name!r}; pass letters, digits, "_", "-" and ".", the last '
            "two not at its beginning, and not .json at its end"
        )
    built_in = name in {*PRESETS, *(m.name for m in _BUILT_IN)}
    if built_in or (name in _METHODS and not replace):
        fix = "choose another" if built_in else "choose another, or pass replace=True"
        raise PlanError(f"the method name {name!r} is taken; {fix}")

    def register(select: Select) -> Select:
        if not callable(select):
            raise PlanError(f"method {name!r} is a {type(select).__name__}; register a function")
        read = {"scores": scores, "text": scores if text is None else text}
        read |= {"vision_scores": vision_scores, "image_hash": True}
        needs = frozenset(name for name, reads in read.items() if reads)
        why = last_query_scores.why_unsupported_heads if scores else _supports_all
        own = OwnMethod(name, select, declared_options(name, select))
        _METHODS[name] = Method(name, own, needs, why_unsupported=why, code=code_of(select))
        add_preset(name, 2 if scores else 0)
        return select

    return register
