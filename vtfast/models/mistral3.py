"""Mistral3 (Mistral Small 3.1 and 3.2) with Pixtral's tower: pictures of any size.

A token ends each row of a picture, and another its last row; both are text.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Mistral3Config, PreTrainedConfig

from vtfast.errors import UnsupportedModelError
from vtfast.models.base import TINY_TOWER, Family, tiny_text
from vtfast.models.generic import Kind, LazyImageHash, Measured
from vtfast.models.vision_scores import Attended, attention_of_features
from vtfast.runtime.call import Pictures


class Mistral3(Family):
    """How Mistral3 reads its pictures."""

    default_horizon = 0.75  # not measured
    kinds: Mapping[str, Kind] = {"image": Kind("pixel_values", "image_token_id", ("image_sizes",))}

    def check(self, model: Any) -> None:
        kind = model.config.get_text_config().model_type
        if kind == "ministral3":
            raise UnsupportedModelError(
                f"the language model ({kind}) scales its queries by the positions of all tokens; "
                "vtfast prunes Mistral3 with the text model of Mistral Small 3.1 and 3.2"
            )
        super().check(model)

    def tiny(self, config: Any) -> PreTrainedConfig:
        tower = {"image_size": 24, "patch_size": 4, "head_dim": 8, "num_hidden_layers": 2}
        return Mistral3Config(  # type: ignore[call-arg]  # an alias of image_token_index
            vision_config={
                **TINY_TOWER,
                **tower,
                "num_attention_heads": 2,
                "model_type": "pixtral",
            },
            text_config=tiny_text(config, head_dim=8),
            image_token_id=90,
            vision_feature_layer=-1,
        )

    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        pixels = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        sizes = torch.tensor([[16, 24], [24, 16], [16, 16]])[:count]
        return [6, 6, 4][:count], {"pixel_values": pixels, "image_sizes": sizes}

    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured | None:
        given, side = call.get("image_sizes"), _side(multimodal)
        unknown = None if sizes is None else Pictures(sizes, [((1, 0, 0),)] * len(sizes))
        if given is None:
            return None if unknown is None else (lambda placed: unknown, ())

        def measure(placed: np.ndarray, pixels: np.ndarray) -> Pictures:
            if unknown is not None and len(unknown.sizes) != len(pixels):
                return unknown
            grids = pixels // side
            return Pictures(grids.prod(1).tolist(), [((1, *grid),) for grid in grids.tolist()])

        return measure, (torch.as_tensor(given),)

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        return attention_of_features(multimodal), False

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        """The patches of all pictures are one sequence, in which each sees those of its own."""
        side, grids = multimodal.config.spatial_merge_size, [parts[0] for parts in pictures.parts]
        lengths = [rows * columns * side**2 for _, rows, columns in grids]
        of_pictures = attended.received(lengths).split(lengths)
        return torch.cat(
            [
                scores.view(rows, side, columns, side).mean((1, 3)).flatten()
                for scores, (_, rows, columns) in zip(of_pictures, grids, strict=True)
            ]
        )

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> LazyImageHash:
        return CropHash(call["pixel_values"], _side(multimodal))


class CropHash(LazyImageHash):
    """The hash of every picture of [images, C, H, W] without what pads it to the largest of them.

    side: of the square of pixels that a visual token stands for.
    """

    def __init__(self, pixels: Tensor, side: int) -> None:
        super().__init__(pixels)
        self._side = side

    def _of(self, pixels: Tensor, grid: Tensor | None, impl: str, pictures: Pictures) -> Tensor:
        side, sizes = self._side, [parts[0] for parts in pictures.parts]
        cropped = (
            picture[None, :, : rows * side, : columns * side].contiguous()
            for picture, (_, rows, columns) in zip(pixels, sizes, strict=True)
        )
        one = super()._of
        return torch.cat([one(picture, None, impl, pictures) for picture in cropped])


def _side(multimodal: Any) -> int:
    config = multimodal.config
    return int(config.vision_config.patch_size * config.spatial_merge_size)


FAMILIES = {"Mistral3ForConditionalGeneration": Mistral3()}
