"""LLaVA-NeXT and LLaVA-OneVision: an overview of the picture, then its tiles joined to one raster,
whose padding is cut off, with a token at the end of each row. A clip has a token at its end."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextConfig, LlavaOnevisionConfig, PreTrainedConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vtfast.models.base import TINY_TOWER, Family, tiny_text
from vtfast.models.generic import Kind, LazyImageHash, Measured, TileHash
from vtfast.models.vision_scores import Attended, attention_of_features, has_class_token
from vtfast.runtime.call import Parts, Pictures

_PINPOINTS = [[16, 32], [32, 16], [32, 32]]


class LlavaNext(Family):
    """How LLaVA-NeXT reads its pictures.

    config: class of the configuration. tower, more: what a tiny one has beside `TINY_TOWER`, and
    beside tower and text model.
    """

    default_horizon = 0.625  # that of LLaVA-1.5; not measured
    kinds: Mapping[str, Kind] = {"image": Kind("pixel_values", "image_token_id", ("image_sizes",))}
    line_ends = True

    def __init__(self, config: Any, tower: dict[str, Any], **more: Any) -> None:
        self._config, self._tower, self._more = config, tower, more

    def tiny(self, config: Any) -> PreTrainedConfig:
        sizes = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
        tiny: PreTrainedConfig = self._config(
            vision_config={**TINY_TOWER, **sizes, "num_attention_heads": 2, **self._tower},
            text_config=tiny_text(config),
            image_token_id=90,
            image_grid_pinpoints=_PINPOINTS,
            **self._more,
        )
        return tiny

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(count, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        sizes = torch.tensor([[16, 32], [30, 15], [20, 40]])[:count]
        # 4 x 4 tokens, then rows with one token more.
        return [16 + 36, 16 + 40, 16 + 36][:count], {"pixel_values": pixels, "image_sizes": sizes}

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured | None:
        given = [call.get(name) for name in self.kinds[kind].more]
        if given[0] is None:
            return None if sizes is None else (lambda placed: _unknown(sizes), ())
        asked = tuple(_as_tensor(values) for values in given if values is not None)

        def measure(placed: np.ndarray, sides: np.ndarray, *numbers: np.ndarray) -> Pictures:
            if sizes is not None and len(sizes) != len(sides):
                return _unknown(sizes)
            cut = [n == 1 for n in numbers[0] for _ in range(n)] if numbers else [True] * len(sides)
            each = [
                self._one(multimodal, call, (int(high), int(wide)), tiled)
                for (high, wide), tiled in zip(sides, cut, strict=False)  # transformers tells
            ]
            found, tiles = [parts for parts, _ in each], [number for _, number in each]
            cut_to = [(int(high), int(wide)) for high, wide in sides]
            return Pictures(list(map(_tokens, found)), found, tiles, cut_to)

        return measure, asked

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        return TileHash(call["pixel_values"])

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        return attention_of_features(multimodal), has_class_token(multimodal)

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        """The model's own code puts the scores of tiles where it puts their features."""
        assert pictures.tiles is not None
        assert pictures.sides is not None
        scores = self._of_tiles(multimodal, call, attended)
        packed, _ = multimodal.pack_image_features(
            scores.split(list(pictures.tiles)),
            pictures.sides,
            image_newline=scores.new_zeros(1),
            **self._packed(multimodal.config, call),
        )
        return torch.cat(list(packed))[:, 0]

    @staticmethod
    def _of_tiles(multimodal: Any, call: Mapping[str, Any], attended: Attended) -> Tensor:
        """fp32 [tiles, patches, 1]."""
        name = "vision_feature_select_strategy"
        left_out = (call.get(name) or getattr(multimodal.config, name)) == "default"
        return attended.of_tiles(has_class_token(multimodal), left_out)[..., None]

    def _one(
        self, multimodal: Any, call: Mapping[str, Any], sides: tuple[int, int], tiled: bool
    ) -> tuple[Parts, int]:
        """The grids and the number of tiles of a picture of these sides in pixels."""
        config, tower = multimodal.config, multimodal.config.vision_config
        side = tower.image_size // tower.patch_size
        overview = (1, side, side)
        if not tiled:
            return (overview, (1, 1, 1)), 1
        # The model's own code, on tensors without data: with a token at the end of each row, and
        # without.
        tiles = image_size_to_num_patches(sides, config.image_grid_pinpoints, tower.image_size)
        pixels = torch.empty(tiles, side**2, 1, device="meta")
        pack, newline = multimodal.pack_image_features, torch.empty(1, device="meta")
        with_ends, without = (
            len(pack([pixels], [sides], image_newline=end, **self._packed(config, call))[0][0])
            for end in (newline, None)
        )
        rows, details = with_ends - without, with_ends - side**2
        return (overview, (1, rows, details // rows)) if rows else (overview,), tiles

    def _packed(self, config: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        """More arguments of `pack_image_features`."""
        name = "vision_feature_select_strategy"
        return {name: call.get(name) or getattr(config, name)}


class LlavaOnevision(LlavaNext):
    """How LLaVA-OneVision reads its pictures and clips. Of several pictures in a sample it may see
    the overviews alone."""

    kinds: Mapping[str, Kind] = {
        "image": Kind("pixel_values", "image_token_id", ("image_sizes", "batch_num_images")),
        "video": Kind("pixel_values_videos", "video_token_id"),
    }

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured | None:
        if kind == "image":
            return super().measured(multimodal, kind, call, sizes)
        pixels, tower = call.get("pixel_values_videos"), multimodal.config.vision_config
        if pixels is None:
            return None if sizes is None else (lambda placed: _unknown(sizes), ())
        side = ceil(tower.image_size // tower.patch_size / 2)
        parts = ((pixels.shape[1], side, side), (1, 1, 1))
        pictures = Pictures([_tokens(parts)] * len(pixels), [parts] * len(pixels))
        return lambda placed: pictures, ()

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        if kind == "video":
            return LazyImageHash(call["pixel_values_videos"])
        return super().hashes(multimodal, kind, call)

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        if pictures.tiles is not None:
            return super().vision_scores(multimodal, call, attended, pictures)
        pooled = multimodal.apply_pooling(self._of_tiles(multimodal, call, attended))
        clips = pooled.reshape(len(pictures.sizes), -1)
        return torch.nn.functional.pad(clips, (0, 1)).flatten()

    def _packed(self, config: Any, call: Mapping[str, Any]) -> dict[str, Any]:
        name = "vision_aspect_ratio"
        return {name: call.get(name) or getattr(config, name)}


def _as_tensor(values: Any) -> Tensor:
    """Sizes or numbers of pictures, which may come as a list of tensors."""
    if isinstance(values, list | tuple) and values and isinstance(values[0], Tensor):
        return torch.stack(list(values))
    return torch.as_tensor(values)


def _tokens(parts: Parts) -> int:
    return sum(t * rows * columns for t, rows, columns in parts)


def _unknown(sizes: list[int]) -> Pictures:
    return Pictures(sizes, [((0, 0, 0),)] * len(sizes))


FAMILIES = {
    "LlavaNextForConditionalGeneration": LlavaNext(
        LlavaNextConfig, {"model_type": "clip_vision_model", "projection_dim": 16}
    ),
    "LlavaOnevisionForConditionalGeneration": LlavaOnevision(
        LlavaOnevisionConfig,
        {"model_type": "siglip_vision_model"},
        video_token_id=91,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
}
