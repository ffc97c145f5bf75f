"""Whether the layers of a model call attention as transformers' own do, read from their code."""

from collections.abc import Sequence
from dis import get_instructions
from inspect import CO_VARKEYWORDS, unwrap
from types import CodeType
from typing import Any

from torch import nn


def shares_attention(config: Any, layers: Sequence[nn.Module]) -> bool:
    """Whether every layer calls the attention function that the text model's `config` names, and
    hands it our keywords, as far as the code of transformers shows; where it does not, every layer
    has to be handed its own mask. What a user has put in place of a module may do anything."""
    for layer in layers:
        attends = getattr(layer, "self_attn", None)
        codes = [_code_of(layer), _code_of(attends)]
        if not all(code and code.co_flags & CO_VARKEYWORDS and _passes_on(code) for code in codes):
            return False
        looked_up = "ALL_ATTENTION_FUNCTIONS" in codes[1].co_names  # type: ignore[union-attr]
        if not looked_up or getattr(attends, "config", None) is not config:
            return False
    return True


def _code_of(module: Any) -> CodeType | None:
    """The forward of a module of transformers; None if it is another's."""
    forward: Any = unwrap(getattr(type(module), "forward", None))  # type: ignore[arg-type]
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook") if module else True
    if replaced or not getattr(forward, "__module__", "").startswith("transformers."):
        return None
    return getattr(forward, "__code__", None)


def _passes_on(code: CodeType) -> bool:
    """Whether a function calls another with keywords it does not name."""
    return any(step.opname == "CALL_FUNCTION_EX" for step in get_instructions(code))
