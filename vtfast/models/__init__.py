"""The model families vtfast can prune: one file each, and this table of them.

A new family is one new file with a `FAMILY` and one line here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn

from vtfast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from vtfast.models.base import Family

# class of transformers -> our module
SUPPORTED = {
    "LlavaForConditionalGeneration": "vtfast.models.llava",
    "Qwen2_5_VLForConditionalGeneration": "vtfast.models.qwen_vl",
}
_WRAPPERS = ("module", "_orig_mod", "base_model", "model")  # DDP, torch.compile, PEFT (twice)


def family_of(model: nn.Module) -> "Family":
    """The family of a model, checked to be one vtfast can prune.

    Raises UnsupportedModelError for any other class; a wrapper's error names the inner model.
    """
    supported = " or ".join(SUPPORTED)
    name = _supported_name(model)
    if name is not None:
        family = family_of_class(name)
        family.check(model)
        return family
    inner, path = model, "model"
    for _ in range(4):  # wrappers wrap one another
        step = next((s for s in _WRAPPERS if getattr(inner, s, inner) is not inner), None)
        if step is None:
            break
        inner, path = getattr(inner, step), f"{path}.{step}"
        name = _supported_name(inner)
        if name is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} wraps a {name}; pass the inner model: vtfast.patch({path})"
            )
    kind = getattr(getattr(model, "config", None), "model_type", None)
    kind = f" (model_type {kind!r})" if kind else ""
    raise UnsupportedModelError(
        f"cannot patch {type(model).__name__}{kind}; supported: {supported}"
    )


def family_of_class(name: str) -> "Family":
    """The family of a class in `SUPPORTED`."""
    family: Family = import_module(SUPPORTED[name]).FAMILY
    return family


def supported_class(model: object) -> type:
    """The transformers class of a model that `family_of` accepts, or the one it derives from."""
    return next(cls for cls in type(model).__mro__ if _is_supported(cls))


def _is_supported(cls: type) -> bool:
    return cls.__name__ in SUPPORTED and cls.__module__.startswith("transformers.")


def _supported_name(model: object) -> str | None:
    """The name of the transformers class of a model, if vtfast supports it."""
    return next((cls.__name__ for cls in type(model).__mro__ if _is_supported(cls)), None)
