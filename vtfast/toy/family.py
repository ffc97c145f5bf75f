"""What training and evaluation need of a model class; one module for each class provides it."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from vtfast.toy.scene import Size

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


class Seen(NamedTuple):
    """What a tower makes of B pictures of V visual tokens, [B, V, width of the model].

    `glyphs`: what the glyph head reads. `visual`: what the decoder reads, in fp32. `added`: what is
    added to the visual tokens behind each of the first decoder layers, [B * V, width] each.
    """

    glyphs: torch.Tensor
    visual: torch.Tensor
    added: Sequence[torch.Tensor] = ()


class Family(Protocol):
    """A model class as training and evaluation see it: `vtfast.toy.llava`, or one of
    `vtfast.toy.qwen`.

    A sequence of the decoder is BEFORE, the visual tokens in raster order, AFTER, then text. P
    counts all but the text, and V the visual tokens: one per 12 x 12 pixels.
    """

    MODEL_TYPE: str  # in its configuration
    LEAST_LAYERS: int  # of the decoder that can be pruned
    SIZES: Sequence[Size]  # of the pictures trained on, as (width, height)
    BEFORE: Sequence[int]
    AFTER: Sequence[int]

    def build_model(self, layers: int, seed: int) -> Any:
        """An untrained float32 model with `layers` decoder layers."""

    def build_processor(self) -> Any:
        """The processor that turns pictures and texts into this model's inputs."""

    def load_processor(self, folder: Path | str) -> Any:
        """The processor that was saved to `folder`, without a network."""

    def positions(self, size: Size) -> torch.Tensor:
        """Positions of the first P tokens of a sequence, int64 [axes, P]; text follows."""

    def see(self, model: Any, pixels: torch.Tensor) -> Seen:
        """Encode normalised pixels [B, 3, height, width]."""

    def decode(
        self,
        model: Any,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        seen: Seen,
    ) -> torch.Tensor:
        """Final states [B, S, D] of embeds [B, S, D], in which the visual tokens are, under an
        additive mask [1, 1, S, S], at positions [axes, S]."""

    def prepare_training(self, model: Any) -> None:
        """Replace parts of this instance that are slow in training."""


def draw_weights(model: Any, seed: int, summed: Sequence[tuple[str, int]]) -> None:
    """Fill the weights of `model` from `seed`: N(0, 1 / fan-in), biases and norms left alone.

    At width 128 the library's default of 0.02 is too small to learn from in a short run. `summed`
    lists (pattern, layers): matrices whose outputs are added to a residual stream of that many
    layers start smaller. The first pattern that fits a name counts.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = _initial_std(name, weight, summed)
            if std:
                weight.normal_(0, std, generator=generator)


def _initial_std(name: str, weight: torch.Tensor, summed: Sequence[tuple[str, int]]) -> float:
    """Standard deviation to draw a weight with; 0 if it stays as it is."""
    if "embed_tokens" in name:
        return 0.5
    if "position_embedding" in name or name.endswith("class_embedding"):
        return 0.2
    if weight.ndim < 2:
        return 0.0
    std = weight[0].numel() ** -0.5
    if "lm_head" in name:
        return 0.3 * std
    layers = next((count for pattern, count in summed if fnmatch(name, pattern)), None)
    return std if layers is None else std * (2 * layers) ** -0.5
