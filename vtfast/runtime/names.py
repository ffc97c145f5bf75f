"""What transformers calls the things our hooks need, in every release vtfast runs on.

The only place that knows more than one name. A hook that does not find what it must find raises
`UnsupportedVersionError` naming it: a default instead would go on with a wrong answer.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
import transformers
from torch import nn
from transformers import masking_utils
from transformers.cache_utils import Cache

from vtfast.errors import UnsupportedVersionError

# The KV cache, as argument and in outputs: "cache" since 5.24. Until 5.40 a caller may use either;
# a model hands its layers one of them, with None where there is no cache.
CACHE = ("cache", "past_key_values")


def missing(what: str, where: str) -> UnsupportedVersionError:
    """The error for something this release of transformers does not have where vtfast needs it."""
    return UnsupportedVersionError(
        f"transformers {transformers.__version__}: found no {what} in {where}, on which vtfast "
        "builds; install a tested release (`vtfast doctor` lists them)"
    )


def given_cache(call: Mapping[str, Any]) -> Cache | None:
    """The cache in a call of a model, which may leave it out."""
    return next((call[name] for name in CACHE if call.get(name) is not None), None)


def handed_cache(kwargs: Mapping[str, Any], layer: nn.Module) -> Cache | None:
    """The cache a decoder layer will write to."""
    name = next((name for name in CACHE if name in kwargs), None)
    if name is None:
        raise missing(f"argument {' or '.join(map(repr, CACHE))}", type(layer).__name__)
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    # Checkpointing takes the cache away; since 5.24 only where there will be a backward.
    taken_away = checkpointed and (torch.is_grad_enabled() or name == "past_key_values")
    return None if taken_away else kwargs[name]


def returned_cache(output: Any) -> Any:
    """The cache in what a model or `generate` returned."""
    for name in CACHE:
        if name in output:
            return output[name]
    raise missing(f"field {' or '.join(map(repr, CACHE))}", type(output).__name__)


def handed(name: str, kwargs: Mapping[str, Any], module: nn.Module) -> Any:
    """An argument that transformers always hands to this module."""
    if name not in kwargs:
        raise missing(f"argument {name!r}", type(module).__name__)
    return kwargs[name]


def cache_argument() -> str:
    """What this release calls the cache in a call, as its mask function shows."""
    taken = signature(masking_utils.create_causal_mask).parameters
    for name in CACHE:
        if name in taken:
            return name
    raise missing(f"argument {' or '.join(map(repr, CACHE))}", "create_causal_mask")


def check_arguments(module: nn.Module, *names: str | tuple[str, ...]) -> None:
    """Refuse a module whose forward does not take these arguments; of a tuple one will do."""
    parameters = signature(module.forward).parameters.values()
    taken = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    for name in names:
        either = (name,) if isinstance(name, str) else name
        if taken and not taken & set(either):  # a bare (*args, **kwargs) says nothing
            raise missing(f"argument {' or '.join(map(repr, either))}", type(module).__name__)
