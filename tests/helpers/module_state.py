"""A snapshot of all attributes of a model's modules, to compare two moments."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

# Written by Qwen2.5-VL's own forward, patched or not.
_OF_TRANSFORMERS = {"rope_deltas"}


class Same:
    """Equal only to the very same object, kept alive so that no other can take its place."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.version = value._version if isinstance(value, torch.Tensor) else 0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Same) and self.value is other.value and self.version == other.version
        )

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} at {id(self.value):x}>"


class Alike(Same):
    """Equal to any object of the same class and, for a function, the same name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and repr(self) == repr(other)

    __hash__ = Same.__hash__

    def __repr__(self) -> str:
        name = getattr(self.value, "__qualname__", "")
        return f"<{type(self.value).__name__} {name}>"


def module_state(model: torch.nn.Module, leaf: type[Same] = Same) -> dict[tuple[str, str], Any]:
    """`vars()` of every module, hooks and configurations opened up, by module name and attribute.

    With `leaf=Alike` two models built alike have equal states.
    """
    state: dict[tuple[str, str], Any] = {}
    for name, module in model.named_modules():
        state[name, "its class"] = type(module)
        for key, value in vars(module).items():
            if key not in _OF_TRANSFORMERS:
                state[name, key] = _open(value, leaf)
    return state


def changes(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    """What differs between two states: names of attributes added, removed or changed."""
    missing = object()
    keys = [*before, *(k for k in after if k not in before)]
    return [k for k in keys if before.get(k, missing) != after.get(k, missing)]


def class_state(model: torch.nn.Module) -> dict[type, dict[str, Any]]:
    """The attributes of every class that a module of the model belongs to."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    return {cls: {k: Same(v) for k, v in vars(cls).items()} for cls in classes}


def _open(value: object, leaf: type[Same]) -> object:
    if value is None or isinstance(value, (str, int, float, bool, torch.dtype, type)):
        return type(value), value
    if isinstance(value, (PreTrainedConfig, GenerationConfig)):
        return type(value), _open(vars(value), leaf)
    if isinstance(value, Mapping):
        # An id or name, and its value; order is part of it, as hooks run in order.
        return type(value), [(k, _open(v, leaf)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [_open(v, leaf) for v in value]
    if isinstance(value, (set, frozenset)):
        return type(value), set(value)
    return leaf(value)
