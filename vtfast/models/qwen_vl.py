"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5.

Qwen3-VL has DeepStack: features of its tower's layers are added to visual tokens behind the first
decoder layers. It writes the frames of a clip apart, each behind a timestamp, as Qwen3.5 does. Of
Qwen3.5's layers three in four have linear attention, which keeps a state of one size.
"""

from typing import Any

from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from vtfast.models.base import TINY_TEXT, TINY_TOWER
from vtfast.models.gridded import TINY_ROPE, Gridded


class Qwen35(Gridded):
    """How Qwen3.5 reads its pictures and clips."""

    recurrent = ("linear_attention",)

    def queries(self, projected: Tensor, head_size: int) -> Tensor:
        """Each head's query is followed by its gate."""
        heads = projected.unflatten(-1, (-1, 2 * head_size))
        return heads[..., :head_size].flatten(-2)


_OUT = {"out_hidden_size": TINY_TEXT["hidden_size"]}
_OF_QWEN3: tuple[dict[str, Any], dict[str, Any]] = (
    {"head_dim": 8, "rope_parameters": {"mrope_interleaved": True, **TINY_ROPE}},
    {**TINY_TOWER, **_OUT, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
)
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OF_QWEN35 = (
    {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {**_OF_QWEN3[0]["rope_parameters"], "partial_rotary_factor": 0.5},
    },
    {**_OF_QWEN3[1], "deepstack_visual_indexes": []},
)
FAMILIES = {
    "Qwen2VLForConditionalGeneration": Gridded(
        Qwen2VLConfig,
        {},
        {"embed_dim": 16, "mlp_ratio": 2, "hidden_size": TINY_TEXT["hidden_size"]},
    ),
    "Qwen2_5_VLForConditionalGeneration": Gridded(
        Qwen2_5_VLConfig,
        {},
        {**TINY_TOWER, **_OUT, "window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "Qwen3VLForConditionalGeneration": Gridded(Qwen3VLConfig, *_OF_QWEN3),
    "Qwen3VLMoeForConditionalGeneration": Gridded(
        Qwen3VLMoeConfig, {**_OF_QWEN3[0], **_EXPERTS}, _OF_QWEN3[1]
    ),
    "Qwen3_5ForConditionalGeneration": Qwen35(Qwen3_5Config, *_OF_QWEN35),
    "Qwen3_5MoeForConditionalGeneration": Qwen35(
        Qwen3_5MoeConfig,
        {**_OF_QWEN35[0], **_EXPERTS, "shared_expert_intermediate_size": 16},
        _OF_QWEN35[1],
    ),
}
