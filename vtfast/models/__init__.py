"""The model families vtfast can prune: one file each, and this table of them.

A new family is one new file with a `FAMILY` and one line here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn

from vtfast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from vtfast.models.decoder import Family

# class of transformers -> our module
SUPPORTED = {
    "LlavaForConditionalGeneration": "vtfast.models.llava",
    "Qwen2_5_VLForConditionalGeneration": "vtfast.models.qwen2_5_vl",
}


def family_of(model: nn.Module) -> "Family":
    """The family of a model, checked to be one vtfast can prune.

    Raises UnsupportedModelError for any other class; a wrapper's error names the inner model.
    """
    supported = " or ".join(SUPPORTED)
    for cls in type(model).__mro__:
        if cls.__name__ in SUPPORTED:
            family: Family = import_module(SUPPORTED[cls.__name__]).FAMILY
            family.check(model)
            return family
    for how in ("module", "_orig_mod", "base_model.model"):  # DDP, torch.compile, PEFT
        inner: object = model
        for name in how.split("."):
            inner = getattr(inner, name, None)
        if any(cls.__name__ in SUPPORTED for cls in type(inner).__mro__):
            raise UnsupportedModelError(
                f"{type(model).__name__} wraps a {type(inner).__name__}; "
                f"pass the inner model: vtfast.patch(model.{how})"
            )
    kind = getattr(getattr(model, "config", None), "model_type", None)
    kind = f" (model_type {kind!r})" if kind else ""
    raise UnsupportedModelError(
        f"cannot patch {type(model).__name__}{kind}; supported: {supported}"
    )
