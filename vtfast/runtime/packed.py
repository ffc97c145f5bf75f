"""The packed layout: the batch is one sequence without padding, [1, tokens, D].

Attention gets `AttentionMetadata` instead of a mask, the cache `PackedKVLayer`s. `padded` offers
the same functions for the other layout. Both return their results and change nothing but the
cache's layers.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtfast.runtime.host_read import to_device
from vtfast.runtime.layout import Chunk, Entry, Placement
from vtfast.runtime.packed_kv_cache import (
    AttentionMetadata,
    PackedKVLayer,
    PackedKVLayout,
    row_numbers,
)
from vtfast.runtime.stage import Stage


class Packed:
    """All tokens one after another, without padding."""

    is_packed = True

    def __init__(self, kernels: bool) -> None:
        self.kernels = kernels  # whether Triton kernels will read the cache

    def place(self, lengths: list[int], source: Tensor | None, device: torch.device) -> Placement:
        """The places `source` of the running tensor, one after another."""
        return Placement(index=source, slots=None)

    def enter(self, chunk: Chunk, stage: Stage, hidden: Tensor, cache: Cache | None) -> Entry:
        """Pack the cache layers of the stage span and announce the tokens to come."""
        if cache is None:
            return Entry(metadata=AttentionMetadata.without_past(chunk.lengths, hidden.device))
        seen, cached = cache.get_seq_length(), chunk.cached
        if not isinstance(cached, PackedKVLayout):
            cached = self._pack_layers(chunk, stage, cache, hidden.device)
        metadata = cached.extend(chunk.lengths, cache.layers)
        gap = seen + chunk.size - max(cached.lengths) if stage.layer == 0 else None
        return Entry(cached=cached, metadata=metadata, gap=gap)

    def step(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache) -> Entry:
        """Announce one more token per sample."""
        assert isinstance(chunk.cached, PackedKVLayout)
        new = [1] * chunk.batch
        metadata = chunk.cached.extend(new, cache.layers, step=True, kernels=self.kernels)
        return Entry(cached=chunk.cached, metadata=metadata)

    def positions(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """int64 [1, tokens], in a decoding step [B, 1]: 0, 1, … in every sample, going on from what
        `cache` holds of it."""
        held = [0] * chunk.batch
        if cache is not None:
            assert isinstance(chunk.cached, PackedKVLayout)
            held = [n - m for n, m in zip(chunk.cached.lengths, chunk.lengths, strict=True)]
        return row_numbers(held, chunk.lengths, hidden.device).view(hidden.shape[:2])

    def per_token(self, chunk: Chunk, values: Tensor, like: Tensor) -> Tensor:
        """A value per sample, [B], for each of its tokens, in the shape of `like`."""
        lengths = to_device(chunk.lengths, values.device)
        return values.repeat_interleave(lengths, output_size=sum(chunk.lengths)).view(like.shape)

    @staticmethod
    def _pack_layers(
        chunk: Chunk, stage: Stage, cache: Cache, device: torch.device
    ) -> PackedKVLayout:
        """Replace the cache layers of this stage span by packed ones that take their tokens."""
        layers = cache.layers
        past = int(cache.get_seq_length(stage.layer)) if stage.layer < len(layers) else 0
        lengths, valid = [past] * chunk.batch, None
        if past and chunk.mask is not None and chunk.past:
            lengths = chunk.past
            valid = chunk.mask[:, :past].flatten().bool()
            valid = torch.nonzero_static(valid, size=sum(lengths))[:, 0]
        layout = PackedKVLayout(lengths, device)
        for i in range(stage.layer, stage.until):
            layer = PackedKVLayer(layout)
            if past:
                layer.adopt(layers[i], valid)
            if i < len(layers):
                layers[i] = layer
            else:
                layers.append(layer)
        return layout
