"""LLaVA (`LlavaForConditionalGeneration`): CLIP or SigLIP tower, projector, Llama-like decoder."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig

from vtfast.errors import UnsupportedModelError
from vtfast.models.base import (
    TINY_TEXT,
    TINY_TOWER,
    Family,
    LazyImageHash,
    encoded_by_tower,
    has_merged_features,
    noted,
    placeholders,
)
from vtfast.runtime.call import Source

_TOWERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Family):
    """How LLaVA reads its pictures."""

    default_horizon = 0.625  # layer 20 of 32, arXiv 2512.07580
    tower = "vision_tower"
    inputs = ("input_ids", "pixel_values")

    def check(self, model: Any) -> None:
        tower = model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise UnsupportedModelError(
                f"LLaVA with a vision tower of type {tower!r}; supported towers: "
                f"{', '.join(_TOWERS)} (fixed picture size)"
            )
        super().check(model)

    def tiny(self, config: Any) -> PreTrainedConfig:
        text, tower = config.get_text_config().model_type, config.vision_config.model_type
        sizes = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2, "projection_dim": 16}
        has_class_token = tower == "clip_vision_model"
        return LlavaConfig(  # type: ignore[call-arg]  # an alias of image_token_index
            vision_config=AutoConfig.for_model(tower, **TINY_TOWER, **sizes, num_attention_heads=2),
            text_config=AutoConfig.for_model(text, **TINY_TEXT, sliding_window=None),
            image_token_id=90,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default" if has_class_token else "full",
        )

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [16] * count, {"pixel_values": pixels[:count]}

    def sources(self, multimodal: Any, kwargs: Mapping[str, Any]) -> list[Source]:
        encoded = encoded_by_tower(kwargs, "image")
        pixels = kwargs.get("pixel_values")
        token = multimodal.config.image_token_id
        if encoded is not None:
            sizes = [len(f) for f in encoded.pooler_output]
            image_hash = noted(encoded, "vtfast_image_hash")
            high, wide = getattr(encoded, "vtfast_sides", lambda: (1, 1))()  # square if unknown
        elif pixels is not None:
            sizes = [self._tokens(multimodal, kwargs, pixels.shape[-2:])] * pixels.shape[0]
            image_hash = LazyImageHash(pixels)
            high, wide = pixels.shape[-2:]
        elif has_merged_features(kwargs):
            side = multimodal.config.vision_config.image_size
            size = self._tokens(multimodal, kwargs, (side, side))
            grid = [1, isqrt(size), isqrt(size)]
            return [Source(placeholders(multimodal, kwargs, token), size, grid)]
        else:
            return []
        where = placeholders(multimodal, kwargs, token)
        # A class token is not part of the grid.
        grid = [v for n in sizes for v in (1, isqrt(n * high // wide), isqrt(n * wide // high))]
        return [Source(where, sizes, grid, image_hash)]

    def note(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, hashed: bool
    ) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        if not isinstance(out, tuple):
            sides = pixels.shape[-2:]
            out.vtfast_sides = lambda: sides
            if hashed:
                out.vtfast_image_hash = LazyImageHash(pixels)

    @staticmethod
    def _tokens(multimodal: Any, kwargs: Mapping[str, Any], sides: Sequence[int]) -> int:
        """Features of a picture of these sides; the config's `image_seq_length` may be stale."""
        vision = multimodal.config.vision_config
        height, width = (side // vision.patch_size for side in sides)
        strategy = kwargs.get("vision_feature_select_strategy")
        strategy = strategy or multimodal.config.vision_feature_select_strategy
        with_class_token = vision.model_type == "clip_vision_model"
        return height * width + int(with_class_token) - int(strategy == "default")


FAMILIES = {"LlavaForConditionalGeneration": Llava()}
