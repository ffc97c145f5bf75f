"""The attention function of the packed layout: ragged where tokens are packed, SDPA elsewhere.

Registered once, under one name, in both of transformers' attention registries; a model uses it
only while it is patched with the packed path.
"""

from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "vtfast"
LOCK = RLock()  # held while the name is registered or removed, and during a self-check


def register() -> None:
    """Register `attend` with transformers; idempotent, without effect on unpatched models."""
    with LOCK:
        if not is_registered():
            AttentionInterface.register(NAME, attend)
            AttentionMaskInterface.register(NAME, sdpa_mask)


def plain(implementation: str) -> str:
    """The attention a model has without a patch: a config copied from a patched model's names ours,
    which without packed tokens is SDPA."""
    return "sdpa" if implementation == NAME else implementation


def is_registered() -> bool:
    """Whether transformers knows the name."""
    return NAME in ALL_MASK_ATTENTION_FUNCTIONS


def unregister() -> None:
    """Take the name out of both registries."""
    for registry in (AttentionInterface, AttentionMaskInterface):
        registry._global_mapping.pop(NAME, None)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    vtfast_state: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it.

    Args:
        query: [1, H, tokens, D] packed, or [B, H, 1, D] in a decoding step.
        key, value: [1, Hkv, tokens, D], the new ones, or a `PackedKVLayer`'s buffers
            [total, Hkv, D].
        vtfast_state: this forward's `ForwardState` (what is read of it: `span`, `handed`); as long
            as it has no span, this is transformers' SDPA.

    Returns:
        ([1, tokens, H, D] or [B, 1, H, D], None).
    """
    span = None if vtfast_state is None else vtfast_state.span
    if span is not None:
        vtfast_state.handed.attended += 1
        attention_mask = span.mask
        if span.attention is not None:
            # They differ where autocast is on (SDPA does the same itself), or was on when the cache
            # was filled.
            if not query.dtype == key.dtype == value.dtype:
                kind = query.device.type
                on = torch.is_autocast_enabled(kind)
                dtype = torch.get_autocast_dtype(kind) if on else query.dtype
                query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            return span.attention.attend(query, key, value, scaling), None
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]  # which a user may have replaced
    return sdpa(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )
