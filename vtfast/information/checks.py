"""Checks of the arguments that all measurements share; all raise InputError."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from vtfast.errors import InputError
from vtfast.kernels._checks import IMPLS
from vtfast.models import family_of, inner_model

PER = ("first_token", "mean_token")


def measured_model(model: Any) -> Any:
    """The model to measure: the given one, or the one that a wrapper of it holds.

    Raises UnsupportedModelError as `inner_model` does, and InputError where the wrapper adds
    prompts of its own, without which the model inside answers otherwise.
    """
    inner = inner_model(model)
    for module in model.modules():
        if getattr(getattr(module, "active_peft_config", None), "is_prompt_learning", False):
            raise InputError(
                f"{type(module).__name__} adds learned prompts to every call, which cannot be "
                "measured; use vtfast.evaluate to compare plans on it"
            )
    return inner


def check_layers(layers: Sequence[int] | None, model: Any) -> tuple[int, ...]:
    """Decoder layers to measure, ascending, each once; all of the model's by default."""
    total = len(family_of(model).parts(model).layers)
    if layers is None:
        return tuple(range(total))
    wanted = list(layers) if isinstance(layers, Iterable) else []
    whole = [isinstance(i, Integral) and not isinstance(i, bool) for i in wanted]
    if not wanted or not all(whole) or not all(0 <= i < total for i in wanted):
        raise InputError(
            f"layers={layers!r}: the model has {total} decoder layers; "
            f"pass a list of some of 0 to {total - 1}"
        )
    return tuple(sorted({int(i) for i in wanted}))


def check_options(*, per: str, chunk: int | None, impl: str, **counts: int) -> None:
    """Check options by name; `counts` must be ints >= 1."""
    for name, value, known in (("per", per, PER), ("impl", impl, IMPLS)):
        if value not in known:
            raise InputError(f"{name}={value!r}; pass one of {', '.join(map(repr, known))}")
    if chunk is not None:
        counts["chunk"] = chunk
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise InputError(f"{name}={count!r}: expected an int >= 1")


def check_share(name: str, value: Any, least: float) -> None:
    """Check that a value is a number between `least` and 1, both excluded."""
    if not isinstance(value, int | float) or not least < value < 1:
        raise InputError(f"{name}={value!r}: expected a number in ({least:g}, 1)")
