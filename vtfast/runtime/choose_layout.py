"""Which of the two layouts a forward runs in, and the reason that the report gives.

Decided once for a cache, from host numbers, before layer 0.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache

from vtfast.errors import InputError
from vtfast.methods import kernel_limits
from vtfast.methods.padding import packing_pays
from vtfast.runtime import validation
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.kv_cache import state_of
from vtfast.runtime.model import Parts
from vtfast.runtime.names import given_cache
from vtfast.runtime.visual_tokens import VisualTokens

_STATIC = "a static cache keeps its full size, so no memory is saved"


def why_always_padded(config: PatchConfig, parts: Parts, original: str, unsupported: str) -> str:
    """The reason no forward of a patch can be packed; "" if one can.

    original: the model's attention implementation. unsupported: why Triton's cannot attend in it.
    Raises InputError where path="packed" can never run.
    """
    if config.path == "padded":
        return "asked for"
    reason, advice = "", 'pass path="padded"'
    if original != "sdpa":
        reason = f"the model runs attention {original!r}"
        advice += ' or call model.set_attn_implementation("sdpa") first'
    elif list(parts.attends) != [*range(len(parts.attends))]:
        reason = "the model has recurrent layers"
    elif not parts.head_size:
        reason = "the model's keys and values differ in size"
    elif config.path == "auto" and not parts.shares_attention:
        return "a layer's attention is not called as transformers' own"
    if reason and config.path == "packed":
        raise InputError(f'path="packed" brings its own attention, but {reason}; {advice}')
    return reason or (unsupported and f"attention: {unsupported}" if config.path == "auto" else "")


def is_packed(
    config: PatchConfig,
    parts: Parts,
    always_padded: str,
    embeds: Tensor,
    visual: VisualTokens | None,
    call: Mapping[str, Any],
) -> tuple[bool, str]:
    """Whether a forward of the text model is packed, and why; an explicit choice is kept or
    refused."""
    cache, text = given_cache(call), parts.text
    state, static = state_of(cache), isinstance(cache, StaticCache)
    tensors = chain([embeds], text.parameters())
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if config.impl == "triton" and visual is not None:
        like = embeds.dtype, parts.head_size
        kernel_limits.check(config.stages.values(), visual.segments, gradients, *like)
    if state is not None and state.stages:
        unusual = state.packed and (gradients or always_padded)
        # A step that goes on as its prefill began checks nothing.
        if unusual or state.config is not config:
            validation.check_state(state, config, bool(always_padded), gradients)
        return state.packed, "decided at this cache's first prefill"
    if always_padded:
        return False, always_padded + (f"; {_STATIC}" if static else "")
    dropout = text.training and getattr(text.config, "attention_dropout", 0)
    reasons = (
        (static, _STATIC),
        (gradients, "gradients are enabled"),
        (call.get("output_attentions"), "attention maps were asked for"),
        (getattr(cache, "offloading", False), "the cache offloads its layers"),
        (dropout, "attention dropout is on"),
    )
    reason = next((why for holds, why in reasons if holds), None)
    if config.path == "packed" and reason:
        raise InputError(
            f'path="packed" cannot run this forward: {reason}; use eval mode, torch.no_grad(), no '
            'attention maps, and a dynamic cache on the device, or patch with path="padded"'
        )
    if config.path == "packed" or reason or visual is None:
        return not reason, reason or "asked for"
    given = config.stages.values(), visual.lengths, visual.segments
    return packing_pays(*given, *embeds.shape[:2])
