"""GLM-4.1V and GLM-4.6V: half of a head is rotated, in pairs of neighbours; frames of a clip are
written apart, with the placeholders of pictures."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Glm4vConfig, Glm46VConfig

from vtfast.models.base import TINY_TEXT, TINY_TOWER
from vtfast.models.generic import Kind
from vtfast.models.gridded import TINY_ROPE, Gridded


class Glm4V(Gridded):
    """How GLM-4V reads its pictures and clips."""

    kinds: Mapping[str, Kind] = {
        "image": Gridded.kinds["image"],
        "video": Gridded.kinds["video"]._replace(token="image_token_id"),
    }
    around = ("image_start_token_id", "image_end_token_id")

    def turn(self, x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


_TEXT = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {**TINY_ROPE, "partial_rotary_factor": 0.5},
}
_TOWER = {**TINY_TOWER, "image_size": 16, "out_hidden_size": TINY_TEXT["hidden_size"]}
FAMILIES = {
    "Glm4vForConditionalGeneration": Glm4V(Glm4vConfig, _TEXT, _TOWER),
    "Glm46VForConditionalGeneration": Glm4V(Glm46VConfig, _TEXT, _TOWER),
}
