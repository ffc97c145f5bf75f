"""Aria: the config says how many tokens a picture, or each of its tiles, becomes for its patches.

They are queries that look at all patches of a tile, so they have no rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AriaConfig, PreTrainedConfig

from vtfast.errors import InputError
from vtfast.models.base import TINY_TEXT, TINY_TOWER, Family
from vtfast.models.generic import LazyImageHash, Measured, TileHash, runs
from vtfast.runtime.call import Pictures


class Aria(Family):
    """How Aria reads its pictures: all tiles of one stand between two tokens of their own."""

    default_horizon = 0.75  # not measured
    around_picture = (92, 93)

    def tiny(self, config: Any) -> PreTrainedConfig:
        text = config.get_text_config().model_type
        sizes = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
        return AriaConfig(  # type: ignore[call-arg]  # an alias of image_token_index
            vision_config={**TINY_TOWER, **sizes, "num_attention_heads": 2},
            text_config={**TINY_TEXT, "model_type": text, "moe_num_experts": 4},
            projector_patch_to_query_dict={16: 6},
            image_token_id=90,
        )

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        tiles = [1, 3, 1][:count]
        return [6 * n for n in tiles], {"pixel_values": pixels[: sum(tiles)]}

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured:
        size = sizes[0] if sizes else _tokens_of_a_tile(multimodal.config, call)

        def measure(placed: np.ndarray) -> Pictures:
            tiles = runs(placed)[1] // size
            parts = [((1, 1, size),) * n for n in tiles.tolist()]
            return Pictures((tiles * size).tolist(), parts, tiles.tolist())

        return measure, ()

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        return TileHash(call["pixel_values"])


def _tokens_of_a_tile(config: Any, call: Mapping[str, Any]) -> int:
    tower, pixels = config.vision_config, call.get("pixel_values")
    sides = [tower.image_size] * 2 if pixels is None else pixels.shape[-2:]
    high, wide = (side // tower.patch_size for side in sides)
    known, patches = config.projector_patch_to_query_dict, int(high * wide)
    if patches not in known:
        raise InputError(
            f"pixel_values have {patches} patches a tile; Aria's projector knows "
            f"{', '.join(map(str, known))}: encode pictures with the model's own processor"
        )
    return int(known[patches])


FAMILIES = {"AriaForConditionalGeneration": Aria()}
