"""The padded layout: a rectangle [B, longest, D], every sample right-aligned in it.

Right-aligned, so that the last token stays last. Attention gets masks from transformers' own mask
functions, and the cache is transformers' own, so this works with every attention implementation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from vtfast.methods.stage import Stage
from vtfast.runtime import names
from vtfast.runtime.host_read import to_device
from vtfast.runtime.kv_cache import PaddedKVMask
from vtfast.runtime.layout import Chunk, Entry, Placement


class Padded:
    """Left padding, as transformers does it."""

    is_packed = False

    def __init__(self, config: PreTrainedConfig, sdpa: bool, attends: Sequence[int]) -> None:
        self.config = config
        # The layer that tells how much the layers from layer i on hold, or are about to.
        self._attends = attends
        self.sdpa = sdpa  # the layers run SDPA
        self._cache_argument = names.cache_argument()

    def is_flat(self, chunk: Chunk, layer: int, cache: Cache | None) -> bool:
        """Never: the tokens of a stage's layers are a rectangle."""
        return False

    def place(self, lengths: list[int], source: Tensor | None, device: torch.device) -> Placement:
        """The places `source` (None: all), each sample right-aligned; padding repeats token 0."""
        batch, longest, total = len(lengths), max(lengths), sum(lengths)
        if min(lengths) == longest:
            return source, None
        shift = [(b + 1) * longest - sum(lengths[: b + 1]) for b in range(batch)]
        tokens = torch.arange(total, device=device)
        slots = tokens + torch.repeat_interleave(
            to_device(shift, device), to_device(lengths, device), output_size=total
        )
        fill = tokens.new_zeros(batch * longest).index_copy_(0, slots, tokens)
        return (fill if source is None else source[fill]), slots

    def enter(self, chunk: Chunk, stage: Stage, hidden: Tensor, cache: Cache | None) -> Entry:
        """The stage's mask; its columns are remembered on the cache."""
        layer, longest = self._attends[stage.layer], hidden.shape[1]
        valid = self._valid(chunk, hidden)
        present = None if valid is None else valid.long()
        if cache is None:
            return Entry(self._mask(None, layer, hidden, valid), present=present)
        past, gap = int(cache.get_seq_length(layer)), None
        if stage.layer <= self._attends[0] < stage.until:
            gap = int(cache.get_seq_length()) + chunk.size - past - longest
        known, mask = chunk.mask if past else None, None
        if isinstance(chunk.cached, PaddedKVMask):
            known = chunk.cached.mask
        if known is not None or valid is not None:
            # A static cache has columns for tokens to come: causality hides them until then.
            room = cache.get_mask_sizes(longest, layer)[0] - past - longest
            real = torch.ones_like(hidden[:, :1, 0], dtype=torch.bool)
            before = real.expand(-1, past) if known is None else known[:, :past].bool()
            now = real.expand(-1, longest) if valid is None else valid
            mask = torch.cat([before, now, real.expand(-1, room)], 1)
        return Entry(self._mask(cache, layer, hidden, mask), None, PaddedKVMask(mask), gap, present)

    def step(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache) -> Entry:
        """The stage's mask with one more column."""
        cached, layer = chunk.cached, self._attends[layer]
        assert isinstance(cached, PaddedKVMask)
        if cached.mask is not None:
            cached.step(chunk.mask, cache.get_mask_sizes(1, layer)[0])
        if not self.sdpa or isinstance(cache, StaticCache):
            return Entry(self._mask(cache, layer, hidden, cached.mask), cached=cached)
        # One query sees all that is real; transformers' function takes some 100 us to say so.
        mask = None if cached.mask is None else cached.mask[:, None, None]
        return Entry(mask, cached=cached)

    def positions(self, chunk: Chunk, layer: int, hidden: Tensor, cache: Cache | None) -> Tensor:
        """int64 [B, longest]: 0, 1, … in every sample, going on from what `cache` holds of it."""
        valid = self._valid(chunk, hidden)
        real = torch.ones_like(hidden[..., 0], dtype=torch.int64) if valid is None else valid
        positions = (real.cumsum(1) - 1).clamp(min=0)
        if cache is None:
            return positions
        mask = getattr(chunk.cached, "mask", None)
        held = cache.get_seq_length(self._attends[layer])
        if mask is not None:  # of a static cache it has columns to come, which are real
            held = held - (~mask).sum(1, keepdim=True) + (real == 0).sum(1, keepdim=True)
        return positions + held

    def per_token(self, chunk: Chunk, values: Tensor, like: Tensor) -> Tensor:
        """A value per sample, [B], for all of its tokens: [B, 1]."""
        return values[:, None]

    @staticmethod
    def _valid(chunk: Chunk, hidden: Tensor) -> Tensor | None:
        """bool [B, longest]: which places hold a token; None if all do."""
        if chunk.slots is None:
            return None
        flat = torch.zeros_like(hidden[..., 0], dtype=torch.bool).flatten()
        return flat.index_fill_(0, chunk.slots, True).view(chunk.batch, -1)

    def _mask(self, cache: Cache | None, layer: int, hidden: Tensor, mask: Tensor | None) -> Any:
        """transformers' mask for a layer of this length. Its shortcut (`is_causal` instead
        of a mask) would read our mask back to the host, so it is disabled when there is one."""
        return create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=mask,
            **{self._cache_argument: cache},
            position_ids=None,  # gaps would be taken for packed sequences
            layer_idx=layer,
            allow_is_causal_skip=mask is None,
        )
