"""GLM-4.1V and GLM-4.6V: half of a head is rotated, in pairs of neighbours; frames of a clip are
written apart, with the placeholders of pictures."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import Glm4vConfig, Glm46VConfig

from vtfast.models.base import TINY_TEXT, TINY_TOWER, encoded_by_tower
from vtfast.models.gridded import TINY_ROPE, Gridded
from vtfast.runtime.call import Source
from vtfast.runtime.host_read import to_device


class Glm4V(Gridded):
    """How GLM-4V reads its pictures and clips."""

    kinds: Mapping[str, tuple[str, str, str]] = {
        "image": Gridded.kinds["image"],
        "video": (*Gridded.kinds["video"][:2], "image_token_id"),
    }
    around = ("image_start_token_id", "image_end_token_id")

    def sources(self, multimodal: Any, kwargs: Mapping[str, Any]) -> list[Source]:
        clips: Any = encoded_by_tower(kwargs, "video")
        if hasattr(clips, "vtfast_grid"):
            side = multimodal.config.vision_config.spatial_merge_size
            grid = _of_clips(clips.vtfast_grid(), clips.pooler_output, side**2)
            clips.vtfast_grid = lambda: grid
            if hasattr(clips, "vtfast_image_hash"):
                clips.vtfast_image_hash.regroup(grid)
        return super().sources(multimodal, kwargs)

    def turn(self, x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _of_clips(frames: Tensor, features: Sequence[Tensor], merged: int) -> Tensor:
    """The grids of clips, int64 [clips, 3], from those of the frames that the tower was given.

    features: of each clip, again for each copy of it; merged: patches of a visual token.
    """
    sizes = {id(f): len(f) for f in features}.values()
    ends = to_device(list(accumulate(sizes)), frames.device)
    last = torch.searchsorted((frames.prod(1) // merged).cumsum(0), ends)
    upto = frames[:, 0].cumsum(0)[last]
    return torch.cat((torch.diff(upto, prepend=upto.new_zeros(1))[:, None], frames[last, 1:]), 1)


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
