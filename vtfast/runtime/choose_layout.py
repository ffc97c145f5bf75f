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
from vtfast.methods.padding import padding
from vtfast.methods.stage import Stage
from vtfast.runtime import validation
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.kv_cache import state_of
from vtfast.runtime.model import Parts
from vtfast.runtime.names import given_cache
from vtfast.runtime.visual_tokens import VisualTokens

_STATIC = "a static cache keeps its full size, so no memory is saved"
# Packing costs some 5 to 10 % of a decoding step that waits for the host (bench_host.py), and saves
# about the share of a prefill that would be padding.
_LEAST_PADDING = 1 / 16


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
    text: Any,
    always_padded: str,
    embeds: Tensor,
    visual: VisualTokens | None,
    call: Mapping[str, Any],
) -> tuple[bool, str]:
    """Whether a forward of the `text` model is packed, and why; an explicit choice is kept or
    refused."""
    cache = given_cache(call)
    state, static = state_of(cache), isinstance(cache, StaticCache)
    tensors = chain([embeds], text.parameters())
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if config.impl == "triton" and visual is not None:
        kernel_limits.check(config.stages.values(), visual.segments, gradients)
    if state is not None:
        ours = state.plan is config.plan and state.positions == config.positions
        unusual = state.packed and (gradients or always_padded)
        if unusual or not ours:  # so a step that goes on as its prefill began checks nothing
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
            f'path="packed" cannot run this forward: {reason}; call it in eval mode under '
            "torch.no_grad(), without attention maps, with a dynamic cache on the device, or patch "
            'with path="padded"'
        )
    if config.path == "packed" or reason or visual is None:
        return not reason, reason or "asked for"
    return _packing_pays(visual, config.stages, embeds.shape[:2])


def _packing_pays(
    visual: VisualTokens, stages: Mapping[int, Stage], shape: torch.Size
) -> tuple[bool, str]:
    """Whether a batch [B, S] is faster without padding, and why.

    Samples that are all alike need no padding: then packing has nothing to give, and transformers'
    own cache and attention cost the host less. Where they differ, the padded batch computes, reads
    and caches as many tokens for every sample as for the longest; packing pays from the share of
    these on that outweighs what it costs.
    """
    if not any(stage.drops(visual.segments) for stage in stages.values()):
        return False, "no stage drops a token"
    if len(visual.lengths) > shape[0]:
        return True, "rows hold several samples"
    share = padding(stages.values(), visual.lengths, visual.segments, shape[1])
    said = f"{share:.0%} of a padded batch would be padding" if share else "samples are all alike"
    return share >= _LEAST_PADDING, said
