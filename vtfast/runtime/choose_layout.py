"""Which of the two layouts a forward runs in, and the reason that the report gives.

Decided once for a cache, from host numbers, before layer 0.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticCache

from vtfast.errors import InputError
from vtfast.runtime import validation
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.kv_cache import state_of
from vtfast.runtime.model import Parts
from vtfast.runtime.stage import Stage
from vtfast.runtime.visual_tokens import VisualTokens

_STATIC = "a static cache keeps its full size, so no memory is saved"
# Packing costs some 5 % of a decoding step that the host holds up (bench_overhead.py --host), and
# saves about the share of a prefill that would be padding.
_LEAST_PADDING = 1 / 16


class LayoutChoice:
    """Chooses for one patched model.

    original: the model's attention implementation. why_unsupported: of Triton's attention, see
    `validation.why_kernels_unsupported`. Raises InputError where path="packed" can never run.
    """

    def __init__(
        self, config: PatchConfig, parts: Parts, original: str, why_unsupported: str | None
    ) -> None:
        self._config, self._parts = config, parts
        self._always_padded = _why_always_padded(config, parts, original, why_unsupported)

    def is_packed(
        self,
        embeds: Tensor,
        visual: VisualTokens | None,
        cache: Cache | None,
        call: Mapping[str, Any],
    ) -> tuple[bool, str]:
        """Whether the forward is packed, and why; an explicit choice is kept or refused."""
        config, text = self._config, self._parts.text
        state, static = state_of(cache), isinstance(cache, StaticCache)
        gradients = torch.is_grad_enabled() and any(
            t.requires_grad for t in chain([embeds], text.parameters())
        )
        if config.impl == "triton" and visual is not None:
            validation.check_kernels(config.stages.values(), visual.segments, gradients)
        if state is not None:
            validation.check_state(state, config, bool(self._always_padded), gradients)
            return state.packed, "decided at this cache's first prefill"
        if self._always_padded:
            return False, self._always_padded + (f"; {_STATIC}" if static else "")
        dropout = text.training and getattr(text.config, "attention_dropout", 0)
        reasons = (
            (static, _STATIC),
            (gradients, "gradients are enabled"),
            (call.get("output_attentions"), "attention maps were asked for"),
            (getattr(cache, "offloading", False), "the cache offloads its layers"),
            (dropout, "attention dropout is on"),
        )
        reason = next((why for holds, why in reasons if holds), None)
        if config.path == "packed":
            if reason is None:
                return True, "asked for"
            raise InputError(
                f'path="packed" cannot run this forward: {reason}; '
                "call it in eval mode under torch.no_grad(), without attention maps, with a "
                'dynamic cache on the device, or patch with path="padded"'
            )
        if reason is not None or visual is None:
            return False, reason or "there is no picture"
        return _packing_pays(visual, config.stages, len(embeds))


def _why_always_padded(
    config: PatchConfig, parts: Parts, original: str, why_unsupported: str | None
) -> str | None:
    """The reason no forward of this patch can be packed; None if one can."""
    if config.path == "padded":
        return "asked for"
    reason, advice = "", 'pass path="padded"'
    if original != "sdpa":
        reason = f"the model runs attention {original!r}"
        advice += ' or call model.set_attn_implementation("sdpa") first'
    elif not parts.head_size:
        reason = "the model's keys and values differ in size"
    if reason and config.path == "packed":
        raise InputError(f'path="packed" brings its own attention, but {reason}; {advice}')
    if reason:
        return reason
    if config.path == "auto" and why_unsupported:
        return f"attention: {why_unsupported}"
    return None


def _packing_pays(visual: VisualTokens, stages: Mapping[int, Stage], rows: int) -> tuple[bool, str]:
    """Whether a batch of B `rows` is faster without padding, and why.

    Samples that are all alike need no padding: then packing has nothing to give, and transformers'
    own cache and attention cost the host less. Where they differ, the padded batch computes, reads
    and caches as many tokens for every sample as for the longest; packing pays from the share of
    these on that outweighs what it costs.
    """
    if len(visual.lengths) > rows:
        return True, "rows hold several samples"
    held = padded = 0
    lengths, segments = list(visual.lengths), visual.segments
    for stage in stages.values():
        after = stage.shorten(segments)
        for had, has in zip(stage.budgeted(segments), after, strict=True):
            lengths[had.sample] -= had.left - has.left
        segments, layers = after, stage.until - stage.layer
        held += layers * sum(lengths)
        padded += layers * len(lengths) * max(lengths)
    share = 1 - held / padded
    said = f"{share:.0%} of a padded batch would be padding" if share else "samples are all alike"
    return share >= _LEAST_PADDING, said
