"""The names that the supported releases of transformers give to what our hooks need.

The only file that knows more than one name for a thing. A hook that does not find what it needs
raises `UnsupportedVersionError` naming it: falling back to a default would give wrong results.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
import transformers
from torch import nn
from transformers import masking_utils
from transformers.cache_utils import Cache

from vtfast.errors import StateError, UnsupportedVersionError

# Releases that pass the model tests. Another is tried by `vtfast.models.self_check` first.
TESTED = ("5.17.0", "5.23.0", "5.24.0")

# The KV cache, as argument and in outputs: "cache" since 5.24. Until 5.40 a caller may use either;
# a model hands its layers one of them, with None where there is no cache.
CACHE = ("cache", "past_key_values")
# DeepStack: where the visual tokens are, bool [B, S], and features to add behind the first layers.
DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds")
_EITHER = " or ".join(map(repr, CACHE))


def unsupported(problem: str, module: nn.Module | None = None) -> UnsupportedVersionError:
    """The error for something that is not as vtfast needs it.

    problem: a whole clause, or what follows the class of the module that it is about.
    """
    version = transformers.__version__
    problem = problem if module is None else f"{type(module).__name__} {problem}"
    advice = f"install a tested release ({', '.join(TESTED)})"
    if version in TESTED:
        advice = "this release is tested, so a module of this model must have been changed"
    return UnsupportedVersionError(f"transformers {version}: {problem}; {advice}")


def given_cache(call: Mapping[str, Any]) -> Cache | None:
    """The cache in a call of a model, which may leave it out."""
    return next((call[name] for name in CACHE if call.get(name) is not None), None)


def handed_cache(kwargs: Mapping[str, Any], layer: nn.Module) -> Cache | None:
    """The cache a decoder layer will write to, from what it is handed."""
    name = next((name for name in CACHE if name in kwargs), None)
    if name is None:
        raise unsupported(f"is handed no argument {_EITHER}", layer)
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    # Checkpointing takes the cache away; since 5.24 only where there will be a backward.
    taken_away = checkpointed and (torch.is_grad_enabled() or name == "past_key_values")
    return None if taken_away else kwargs[name]


def returned_cache(output: Any) -> Any:
    """The cache in what a model or `generate` returned."""
    for name in CACHE:
        if name in output:
            return output[name]
    raise StateError(
        f"the model returned a {type(output).__name__} without a KV cache; call it with "
        "use_cache=True (see model.generation_config.use_cache)"
    )


def cache_argument() -> str:
    """What this release calls the cache in a call, as its mask function shows."""
    taken = signature(masking_utils.create_causal_mask).parameters
    for name in CACHE:
        if name in taken:
            return name
    raise unsupported(f"create_causal_mask takes no argument {_EITHER}")


def check_arguments(module: nn.Module, *names: str | tuple[str, ...]) -> None:
    """Refuse a module of transformers that does not take these arguments; of a tuple one is enough.

    The forward looked at is that of the transformers class the module has or derives from, so
    wrappers and third-party subclasses with a forward of their own pass.
    """
    classes = type(module).__mro__
    cls: Any = next((c for c in classes if c.__module__.startswith("transformers.")), None)
    if cls is None:
        return
    taken = signature(cls.forward).parameters
    for name in names:
        either = (name,) if isinstance(name, str) else name
        if not any(n in taken for n in either):
            raise unsupported(f"{cls.__name__} takes no argument {' or '.join(map(repr, either))}")
