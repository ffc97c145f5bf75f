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
from vtfast.runtime.packed_kv_cache import AttentionMetadata, PackedKVLayer, PackedKVLayout
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
        """int64 [1, tokens]: 0, 1, … in every sample, going on from what `cache` holds of it."""
        starts = [sum(chunk.lengths[:b]) for b in range(chunk.batch)]
        if cache is not None:
            assert isinstance(chunk.cached, PackedKVLayout)
            ends = zip(chunk.cached.lengths, chunk.lengths, strict=True)
            starts = [s - (now - new) for s, (now, new) in zip(starts, ends, strict=True)]
        tokens = torch.arange(sum(chunk.lengths), device=hidden.device)
        return tokens - self.per_token(chunk, to_device(starts, hidden.device))

    def step_positions(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache) -> Tensor:
        """int64 [B, 1]: the last position of every sample."""
        assert isinstance(chunk.cached, PackedKVLayout)
        return to_device([n - 1 for n in chunk.cached.lengths], hidden.device)[:, None]

    def per_token(self, chunk: Chunk, values: Tensor) -> Tensor:
        """A value per sample, [B], for each of its tokens: [1, tokens]."""
        lengths = to_device(chunk.lengths, values.device)
        return values.repeat_interleave(lengths, output_size=sum(chunk.lengths))[None]

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
