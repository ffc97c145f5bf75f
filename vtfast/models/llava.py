"""LLaVA (`LlavaForConditionalGeneration`): CLIP or SigLIP tower, projector, Llama-like decoder."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig

from vtfast.errors import UnsupportedModelError
from vtfast.models.base import TINY_TOWER, Family, tiny_text
from vtfast.models.generic import Measured
from vtfast.models.vision_scores import Attended, attention_of_features, has_class_token
from vtfast.runtime.call import Parts, Pictures

_TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    """How LLaVA reads its pictures."""

    default_horizon = 0.625  # layer 20 of 32, arXiv 2512.07580

    def check(self, model: Any) -> None:
        tower = model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise UnsupportedModelError(
                f"LLaVA with a vision tower of type {tower!r}; supported towers: "
                f"{', '.join(_TOWERS)} (fixed picture size)"
            )
        super().check(model)

    def tiny(self, config: Any) -> PreTrainedConfig:
        tower = config.vision_config.model_type
        sizes = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2, "projection_dim": 16}
        has_class_token = tower == "clip_vision_model"
        return LlavaConfig(  # type: ignore[call-arg]  # an alias of image_token_index
            vision_config=AutoConfig.for_model(tower, **TINY_TOWER, **sizes, num_attention_heads=2),
            text_config=tiny_text(config),
            image_token_id=90,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default" if has_class_token else "full",
        )

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [16] * count, {"pixel_values": pixels[:count]}

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        return attention_of_features(multimodal), has_class_token(multimodal)

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        left_out = self._strategy(multimodal, call) == "default"
        return attended.of_tiles(has_class_token(multimodal), left_out).flatten()

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured:
        pixels = call.get("pixel_values")
        high = wide = multimodal.config.vision_config.image_size
        if pixels is not None:
            high, wide = pixels.shape[-2:]
        size = self._tokens(multimodal, call, (high, wide))

        def measure(placed: np.ndarray) -> Pictures:
            count = -(-int(placed.sum()) // size) if pixels is None else len(pixels)
            known = [size] * count if sizes is None else sizes
            return Pictures(known, [_parts(n, high, wide) for n in known])

        return measure, ()

    def _tokens(self, multimodal: Any, call: Mapping[str, Any], sides: Sequence[int]) -> int:
        """Features of a picture of these sides; the config's `image_seq_length` may be stale."""
        height, width = (side // multimodal.config.vision_config.patch_size for side in sides)
        left_out = self._strategy(multimodal, call) == "default"
        return height * width + int(has_class_token(multimodal)) - int(left_out)

    @staticmethod
    def _strategy(multimodal: Any, call: Mapping[str, Any]) -> str:
        given = call.get("vision_feature_select_strategy")
        return str(given or multimodal.config.vision_feature_select_strategy)


def _parts(size: int, high: int, wide: int) -> Parts:
    """The grids of a picture of so many tokens and these sides; a class token is apart."""
    rows, columns = isqrt(size * high // wide), isqrt(size * wide // high)
    return ((1, 1, 1),) * (size - rows * columns) + ((1, rows, columns),)


FAMILIES = {"LlavaForConditionalGeneration": Llava()}
