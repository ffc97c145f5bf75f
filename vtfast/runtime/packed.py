"""The packed layout: the batch is one sequence without padding, [1, tokens, D].

Samples that are all as long need no padding anyway: they stay a rectangle [B, n, D], with
transformers' own cache and attention, as in the padded layout.

Attention gets a `PackedAttention` instead of a mask, the cache `PackedKVLayer`s. `padded` offers
the same functions for the other layout. Both return their results and change nothing but the
cache's layers.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtfast.kernels._packed_attention import RaggedSamples, RaggedStep, eager_step
from vtfast.kernels.ragged import Ragged
from vtfast.methods.stage import Stage
from vtfast.runtime.host_read import to_device
from vtfast.runtime.layout import Chunk, Entry, Placement
from vtfast.runtime.packed_kv_cache import PackedKVLayer, PackedKVLayout, row_numbers
from vtfast.runtime.padded import Padded


class Packed:
    """All tokens one after another, without padding."""

    is_packed = True

    def __init__(self, padded: Padded, always: bool) -> None:
        self.padded = padded  # for samples that are all as long
        self.always = always  # whether such samples are one sequence too
        self.kernel = False  # whether Triton's kernels attend, where the model is now

    def is_flat(self, chunk: Chunk, layer: int, cache: Cache | None) -> bool:
        """Whether the tokens of a stage's layers are one sequence; else they are a rectangle."""
        if self.always or len(set(chunk.lengths)) > 1 or isinstance(chunk.cached, PackedKVLayout):
            return True
        held = 0 if cache is None else cache.get_seq_length(layer)
        with_padding = chunk.past is not None and set(chunk.past) != {held}
        return chunk.cached is None and held > 0 and with_padding

    def place(self, lengths: list[int], source: Tensor | None, device: torch.device) -> Placement:
        """The places `source` of the running tensor, one after another."""
        return source, None

    def enter(self, chunk: Chunk, stage: Stage, hidden: Tensor, cache: Cache | None) -> Entry:
        """Pack the cache layers of the stage span and announce the tokens to come."""
        if not self.is_flat(chunk, stage.layer, cache):
            return self.padded.enter(chunk, stage, hidden, cache)
        queries = chunk.samples or Ragged.from_lengths(chunk.lengths, hidden.device)
        over = RaggedSamples(queries, queries, None, self.kernel)  # the new tokens alone
        if cache is None:
            return Entry(attention=over)
        seen, cached = cache.get_seq_length(), chunk.cached
        if not isinstance(cached, PackedKVLayout):
            cached = self._pack_layers(chunk, stage, cache, hidden.device)
        cached.extend(chunk.lengths, cache.layers)
        gap = seen + chunk.size - max(cached.lengths) if stage.layer == 0 else None
        if not cached.fresh:
            keys = Ragged.from_lengths(cached.lengths, hidden.device)
            index = row_numbers(cached.starts, cached.lengths, hidden.device)
            over = RaggedSamples(queries, keys, index, self.kernel)
        return Entry(cached=cached, attention=over, gap=gap)

    def step(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache) -> Entry:
        """Announce one more token per sample."""
        cached = chunk.cached
        if not isinstance(cached, PackedKVLayout):
            return self.padded.step(chunk, layer, hidden, cache)
        cached.extend([1] * chunk.batch, cache.layers)
        if self.kernel:
            return Entry(cached=cached, attention=RaggedStep(cached.decoder()))
        held: Any = cache.layers[layer]
        return Entry(cached=cached, attention=eager_step(cached.lengths, cached.starts, held.keys))

    def positions(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """int64 [1, tokens], in a decoding step [B, 1]: 0, 1, … in every sample, going on from what
        `cache` holds of it."""
        held = [0] * chunk.batch
        if cache is not None and isinstance(chunk.cached, PackedKVLayout):
            held = [n - m for n, m in zip(chunk.cached.lengths, chunk.lengths, strict=True)]
        elif cache is not None:
            held = [cache.get_seq_length(layer)] * chunk.batch
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
        if past and chunk.cached is None and chunk.mask is not None and chunk.past:
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
