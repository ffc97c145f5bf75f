"""Families that cut a picture into tiles and write each tile with as many placeholders: InternVL 3
and 3.5, SmolVLM 1 and 2, Idefics3. All tiles between two texts are one picture."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Idefics3Config, InternVLConfig, PreTrainedConfig, SmolVLMConfig

from vtfast.models.base import TINY_TOWER, Family, tiny_text
from vtfast.models.generic import IDS, LazyImageHash, Measured, TileHash, runs
from vtfast.models.vision_scores import Attended, attention_of_features, has_class_token
from vtfast.runtime.call import Pictures


class InternVL(Family):
    """How InternVL reads its pictures: all tiles of one stand between two tokens of their own."""

    default_horizon = 0.75  # not measured

    around_picture = (92, 93)

    def tiny(self, config: Any) -> PreTrainedConfig:
        sizes = {"image_size": [16, 16], "patch_size": [4, 4], "num_hidden_layers": 2}
        return InternVLConfig(
            vision_config={**TINY_TOWER, **sizes, "num_attention_heads": 2},
            text_config=tiny_text(config),
            image_token_id=90,
        )

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        tiles = [1, 3, 1][:count]
        return [4 * n for n in tiles], {"pixel_values": pixels[: sum(tiles)]}

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured:
        side = self.side(multimodal, call)

        def measure(placed: np.ndarray) -> Pictures:
            return _of_tiles(runs(placed)[1] // side**2, side)

        return measure, ()

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        return attention_of_features(multimodal), has_class_token(multimodal)

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        scores = attended.of_tiles(has_class_token(multimodal), left_out=True)
        side = isqrt(scores.shape[1])
        tiles = scores.reshape(-1, side, side, 1)
        merged = multimodal.pixel_shuffle(tiles, scale_factor=multimodal.config.downsample_ratio)
        averages: Tensor = merged.mean(-1).flatten()
        return averages

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        return TileHash(call["pixel_values"])

    def side(self, multimodal: Any, call: Mapping[str, Any]) -> int:
        """Visual tokens along the side of a tile."""
        config, pixels = multimodal.config, call.get("pixel_values")
        pixel_side = config.vision_config.image_size[0] if pixels is None else pixels.shape[-1]
        return int(pixel_side // config.vision_config.patch_size[0] * config.downsample_ratio)


class Idefics3(Family):
    """How Idefics3 and SmolVLM read their pictures: what is before each tile tells its place. A
    picture's last tile is the whole picture, made small, so what is before the last tile of a
    sample is before the last tile of every picture. It is one token for SmolVLM and several for
    Idefics3, whose places all end alike; two are compared.

    config: class of the configuration.
    """

    default_horizon = 0.75  # not measured
    text = "text_model"
    around_picture = (92, 93, 92)

    def __init__(self, config: Any) -> None:
        self._config = config

    def tiny(self, config: Any) -> PreTrainedConfig:
        sizes = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2}
        tiny: PreTrainedConfig = self._config(
            vision_config={**TINY_TOWER, **sizes, "num_attention_heads": 2},
            text_config=tiny_text(config),
            image_token_id=90,
            scale_factor=2,
        )
        return tiny

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(1, count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [4] * count, {"pixel_values": pixels}

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured:
        tower, pixels = multimodal.config.vision_config, call.get("pixel_values")
        pixel_side = tower.image_size if pixels is None else int(pixels.shape[-1])
        side = pixel_side // tower.patch_size // multimodal.config.scale_factor

        def measure(placed: np.ndarray, *ids: np.ndarray) -> Pictures:
            first, _ = runs(placed)
            ends = np.ones(len(first), dtype=bool)  # without ids a tile counts as a picture
            for known in ids:
                before, row = known.reshape(-1)[first[:, None] - (2, 1)], first // placed.shape[1]
                of_last = before[np.searchsorted(row, row, "right") - 1]
                ends = (before == of_last).all(1)
            last = np.flatnonzero(ends)
            return _of_tiles(np.diff(last, prepend=-1), side)

        return measure, () if call[IDS] is None else (call[IDS],)

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        return attention_of_features(multimodal), False

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        scores = attended.of_tiles(class_token=False, left_out=False)[..., None]
        connector, factor = multimodal.connector, multimodal.config.scale_factor
        averages: Tensor = connector.pixel_shuffle(scores, factor).mean(-1).flatten()
        return averages

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        return TileHash(call["pixel_values"], by_sample=True)


def _of_tiles(tiles: np.ndarray, side: int) -> Pictures:
    """Pictures of so many tiles, each of side x side tokens."""
    sizes, parts = tiles * side**2, [((1, side, side),) * n for n in tiles]
    return Pictures(sizes.tolist(), parts, tiles.tolist())


FAMILIES = {
    "InternVLForConditionalGeneration": InternVL(),
    "SmolVLMForConditionalGeneration": Idefics3(SmolVLMConfig),
    "Idefics3ForConditionalGeneration": Idefics3(Idefics3Config),
}
