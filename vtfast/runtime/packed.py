"""The packed layout: the batch is one sequence without padding, [1, tokens, D].

Attention gets a `PackedAttention` instead of a mask, the cache `PackedKVLayer`s. `padded` offers
the same functions for the other layout. Both return their results and change nothing but the
cache's layers.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtfast.errors import StateError
from vtfast.kernels import _packed_attention as attention
from vtfast.kernels._device_cache import is_captured
from vtfast.kernels.ragged import Ragged
from vtfast.methods.stage import Stage
from vtfast.runtime.host_read import to_device
from vtfast.runtime.layout import Chunk, Entry, Placement
from vtfast.runtime.packed_kv_cache import PackedKVLayer, PackedKVLayout, row_numbers


class Packed:
    """All tokens one after another, without padding."""

    is_packed = True

    def __init__(self, kernel: bool, views: bool) -> None:
        self.kernel = kernel  # whether Triton's kernels attend where samples differ in length
        self.views = views  # whether SDPA does where they do not, else as if they differed

    def place(self, lengths: list[int], source: Tensor | None, device: torch.device) -> Placement:
        """The places `source` of the running tensor, one after another."""
        return source, None

    def enter(self, chunk: Chunk, stage: Stage, hidden: Tensor, cache: Cache | None) -> Entry:
        """Pack the cache layers of the stage span and announce the tokens to come."""
        how = chunk.samples, hidden.device, self.kernel, self.views
        if cache is None:
            return Entry(attention=attention.over_new(chunk.lengths, *how))
        seen, cached = cache.get_seq_length(), chunk.cached
        if not isinstance(cached, PackedKVLayout):
            cached = self._pack_layers(chunk, stage, cache, hidden.device)
        cached.extend(chunk.lengths, cache.layers, views=self.views)
        gap = seen + chunk.size - max(cached.lengths) if stage.layer == 0 else None
        if cached.fresh:
            over = attention.over_new(chunk.lengths, *how)
        elif cached.window is not None:
            over = attention.EqualSamples(chunk.batch)
        else:
            index = row_numbers(cached.starts, cached.lengths, hidden.device)
            keys = Ragged.from_lengths(cached.lengths, hidden.device)
            queries = chunk.samples or Ragged.from_lengths(chunk.lengths, hidden.device)
            over = attention.RaggedSamples(queries, keys, index, self.kernel)
        return Entry(cached=cached, attention=over, gap=gap)

    def step(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache) -> Entry:
        """Announce one more token per sample."""
        cached = chunk.cached
        assert isinstance(cached, PackedKVLayout)
        cached.extend([1] * chunk.batch, cache.layers, views=self.views)
        if cached.window is None:
            decoder = cached.decoder() if self.kernel else None
            over = attention.RaggedStep(decoder, cached.lengths, cached.starts)
            return Entry(cached=cached, attention=over)
        if is_captured(hidden.device):
            raise StateError(
                "a CUDA graph of this decoding step would fix the length of its samples, which are "
                'all as long; patch with impl="triton"'
            )
        return Entry(cached=cached)  # transformers' SDPA, on views of the cache

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
