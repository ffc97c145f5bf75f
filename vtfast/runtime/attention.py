"""The attention function of the packed layout: ragged where tokens are packed, SDPA elsewhere.

Registered once, under one name, in both of transformers' attention registries; a model uses it
only while it is patched with the packed path.
"""

from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from vtfast.kernels._sdpa import attend_windows
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode

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
        vtfast_state: this forward's `ForwardState` (what is read of it: `metadata`, `impl`,
            `handed`); without metadata in it this is transformers' SDPA.

    Returns:
        ([1, tokens, H, D] or [B, 1, H, D], None).
    """
    metadata = None if vtfast_state is None else vtfast_state.metadata
    if metadata is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    vtfast_state.handed.attended += 1
    if not query.dtype == key.dtype == value.dtype:  # under autocast: what SDPA does itself
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if metadata.window is not None:
        return attend_windows(query.transpose(1, 2), key, value, metadata.window, scaling), None
    how = {"scale": scaling, "impl": vtfast_state.impl}
    if metadata.decode is not None:
        spans = metadata.decode
        how |= {"starts": spans.starts, "max_length": spans.max_length}
        return ragged_decode(query[:, :, 0], key, value, spans.lengths, **how)[:, None], None
    if key.ndim == 4:
        key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
    tokens, segments = query[0].transpose(0, 1), (metadata.queries, metadata.keys)
    out = ragged_attention(tokens, key, value, *segments, k_index=metadata.index, **how)
    return out[None], None
