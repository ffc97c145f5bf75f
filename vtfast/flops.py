"""Arithmetic of a prefill: what pruning saves, from a configuration and numbers of tokens."""

from collections.abc import Sequence
from typing import Any


def multiply_adds(config: Any, tokens: Sequence[int]) -> int:
    """Multiply-adds of decoder layers in a prefill, with `tokens[i]` tokens in layer i.

    For one layer with T tokens, hidden size h, H query heads and G key/value heads of d channels,
    and a gated MLP of width m:

        T·(2·h·H·d + 2·h·G·d + 3·h·m)     q, o; k, v; gate, up, down
        + T·(T+1)/2 · 2·H·d               causal scores, and the sum over values

    Of experts, m is the width of all that a token goes to. A layer of linear attention with K key
    and V value channels in all, c key channels a head, has T·(2·h·K + 3·h·V + 2·c·V) in place of
    what attention has: q, k; v, gate, o; reading and writing the state.

    Not counted: embeddings, vision tower, norms, output head, and the selection itself.
    """
    text = text_config(config)
    hidden, heads = text.hidden_size, text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    mlp = 3 * hidden * _mlp_width(text)
    attends = 2 * hidden * (heads + kv_heads) * head_dim
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * len(tokens)
    total = 0
    for t, kind in zip(tokens, kinds, strict=False):
        if kind == "linear_attention":
            keys = text.linear_num_key_heads * text.linear_key_head_dim
            values = text.linear_num_value_heads * text.linear_value_head_dim
            state = 2 * text.linear_key_head_dim * values
            total += t * (2 * hidden * keys + 3 * hidden * values + state + mlp)
        else:
            total += t * (attends + mlp) + t * (t + 1) * heads * head_dim
    return total


def _mlp_width(text: Any) -> int:
    """Width of the MLP that a token runs through: of all experts it goes to together."""
    if hasattr(text, "moe_topk"):  # Aria's experts, chosen and shared ones, are equally wide
        return int((text.moe_topk + text.moe_num_shared_experts) * text.intermediate_size)
    experts = getattr(text, "num_experts_per_tok", None)
    if not experts:
        return int(text.intermediate_size)
    shared = getattr(text, "shared_expert_intermediate_size", 0)
    return int(experts * text.moe_intermediate_size + shared)


def text_config(config: Any) -> Any:
    """The text model's configuration, from its own or the whole model's."""
    if callable(getattr(config, "gettext_config", None)):
        return config.gettext_config()
    return getattr(config, "text_config", config)
