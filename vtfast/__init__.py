"""vtfast: fewer visual tokens in stock Hugging Face vision-language models.

    vtfast.patch(model)              # half of the visual tokens, on average over the layers
    model.generate(**inputs)         # nothing else changes
    vtfast.unpatch(model)            # exactly the model you had

Importing this package loads neither torch nor triton nor transformers: every public name is
fetched from its module on first use. (`vtfast.patch` is the function; its module is
`vtfast.patching`.)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtfast import evaluation, information, methods, ops, processors, report, toy, tuning
    from vtfast.errors import (
        AlreadyPatchedError,
        InputError,
        PlanError,
        StateError,
        UnsupportedModelError,
        UnsupportedVersionError,
        VTFastError,
    )
    from vtfast.evaluation import evaluate
    from vtfast.methods import register_method
    from vtfast.models import supported
    from vtfast.patching import Handle, is_patched, patch, unpatch
    from vtfast.plan import Plan, Prune
    from vtfast.tuning import tune

__version__ = "0.2.0"

# Public name -> the module that defines it; the bare submodules come last.
_HOME = {
    "patch": "vtfast.patching",
    "unpatch": "vtfast.patching",
    "is_patched": "vtfast.patching",
    "Handle": "vtfast.patching",
    "supported": "vtfast.models",
    "Plan": "vtfast.plan",
    "Prune": "vtfast.plan",
    "register_method": "vtfast.methods",
    "evaluate": "vtfast.evaluation",
    "tune": "vtfast.tuning",
    "VTFastError": "vtfast.errors",
    "PlanError": "vtfast.errors",
    "AlreadyPatchedError": "vtfast.errors",
    "UnsupportedModelError": "vtfast.errors",
    "UnsupportedVersionError": "vtfast.errors",
    "InputError": "vtfast.errors",
    "StateError": "vtfast.errors",
}
_SUBMODULES = (
    "evaluation",
    "information",
    "methods",
    "ops",
    "processors",
    "report",
    "toy",
    "tuning",
)

__all__ = [
    "AlreadyPatchedError",
    "Handle",
    "InputError",
    "Plan",
    "PlanError",
    "Prune",
    "StateError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "VTFastError",
    "__version__",
    "evaluate",
    "evaluation",
    "information",
    "is_patched",
    "methods",
    "ops",
    "patch",
    "processors",
    "register_method",
    "report",
    "supported",
    "toy",
    "tune",
    "tuning",
    "unpatch",
]


def __getattr__(name: str) -> object:
    """Import the module behind a public name the first time the name is used."""
    if name in _SUBMODULES:
        return importlib.import_module(f"vtfast.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'vtfast' has no attribute {name!r}; it has {sorted(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
