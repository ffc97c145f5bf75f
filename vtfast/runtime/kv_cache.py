"""The state of a generation: kept on its KV cache, whose class gains a few overrides.

transformers asks a cache two different questions by one method. `get_seq_length()` without a layer
is how many tokens the generation has seen: positions and slicing of inputs follow from it.
`get_seq_length(i)` is what layer i holds: masks follow from it. With pruning they differ by `gap`.

`adopt` therefore changes the class of the existing cache. Three other solutions would not work: a
new cache, because `generate` and the caller hold this one; methods set on the instance, because a
copy or a pickle of it would call the original's; and cache layers of our own, because they are not
told which of the two questions is asked.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, StaticCache

from vtfast.errors import StateError
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.packed_kv_cache import PackedKVLayout


class PaddedKVMask:
    """The padded counterpart of `PackedKVLayout`: which cached columns of a stage span are real.

    `mask`: bool [batch, length], or None when all are.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask

    def step(self, given: Tensor | None, length: int) -> None:
        """Add a column, real unless the attention mask `given` [batch, tokens] hides it. The mask
        of a static cache has all `length` columns from the start."""
        if self.mask is not None and self.mask.shape[1] < length:
            last = torch.ones_like(self.mask[:, :1]) if given is None else given[:, -1:].bool()
            self.mask = torch.cat([self.mask, last], dim=1)

    def crop(self, remove: int) -> None:
        """Forget the last `remove` columns."""
        if self.mask is not None and remove:
            self.mask = self.mask[:, :-remove]

    def select(self, index: Tensor, layers: Sequence[object], *, alike: bool = False) -> None:
        """Reorder, drop or repeat samples, as transformers' own layers have done already."""
        if self.mask is not None:
            self.mask = self.mask[index.to(self.mask.device)]


@dataclass
class CacheState:
    """Everything vtfast keeps for one generation. Without stages nothing has been dropped yet."""

    packed: bool
    config: PatchConfig  # goes on by this plan, whichever the model has been set to since
    batch: int
    stages: dict[int, PackedKVLayout | PaddedKVMask] = field(default_factory=dict)  # by layer
    moved: dict[int, Tensor] = field(default_factory=dict)  # bool [batch]: renumbered samples
    gap: int = 0  # tokens seen - columns of layer 0
    images: Tensor | None = None  # int64 [batch], images seen so far
    free: Tensor | None = None  # int64 scalar: tokens after the last picture or padding of a chunk
    end: int = 0  # tokens seen when that chunk ended


class PrunedCacheMixin:
    """Overrides for a cache whose layers hold different numbers of tokens."""

    vtfast: CacheState

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens seen (no argument) or held by one layer."""
        if layer_idx is None:
            return super().get_seq_length(0) + self.vtfast.gap  # type: ignore[misc]
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget tokens at the end: -n removes n; n > 0 keeps n (transformers before 5.23)."""
        state, seen, remove = self.vtfast, self.get_seq_length(), -int(tokens_to_remove)
        if remove < 0:
            remove = max(0, seen + remove)
        into = max(0, remove - (seen - state.end))
        if into and state.free is not None:
            if into > int(state.free):
                raise StateError(
                    f"cannot crop {remove} tokens off a pruned cache: its last picture or padding "
                    f"ends {remove - into + int(state.free)} tokens before the end, and layers "
                    "hold different numbers of its tokens; crop less, or start a new cache"
                )
            state.free, state.end = state.free - into, state.end - into
        with self._announced():
            super().crop(-remove)  # type: ignore[misc]
        for stage in state.stages.values():
            stage.crop(remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder samples (beam search: each from a copy of its own prompt)."""
        with self._announced():
            super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx, alike=True)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        with self._announced():
            super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        with self._announced():
            super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        samples = torch.arange(self.vtfast.batch, device="cpu")
        self._select(samples.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything, the pruning included: the cache is what it was before."""
        cache: Cache = self  # type: ignore[assignment]
        plain = next(c for c, pruned in _PRUNED.items() if pruned is type(cache))
        if plain is DynamicCache:  # before 5.23 transformers' own reset keeps the length
            cache.layers = [
                (DynamicLayer if hasattr(x, "keys") else type(x))() for x in cache.layers
            ]
        else:
            super().reset()  # type: ignore[misc]
        del self.vtfast
        cache.__class__ = plain

    @contextmanager
    def _announced(self) -> Iterator[None]:
        """Tell packed layers to expect a move or crop; their layouts are updated right after it."""
        layouts = [s for s in self.vtfast.stages.values() if isinstance(s, PackedKVLayout)]
        for layout in layouts:
            layout.announced = True
        try:
            yield
        finally:
            for layout in layouts:
                layout.announced = False

    def _select(self, index: Tensor, *, alike: bool = False) -> None:
        state, seen = self.vtfast, self.get_seq_length()
        state.batch = len(index)
        for stage in state.stages.values():
            stage.select(index, self.layers, alike=alike)  # type: ignore[attr-defined]
        if state.packed:  # the longest sample may be gone
            state.gap += seen - self.get_seq_length()
        state.moved = {layer: flags[index.to(flags.device)] for layer, flags in state.moved.items()}
        if state.images is not None:
            state.images = state.images[index.to(state.images.device)]


# At module level, so that a pruned cache can be pickled.
class PrunedDynamicCache(PrunedCacheMixin, DynamicCache):
    """A cache that grows."""


class PrunedStaticCache(PrunedCacheMixin, StaticCache):
    """A cache of a fixed size: pruning saves time in it, but no memory."""


_PRUNED: dict[type[Cache], type[Cache]] = {
    DynamicCache: PrunedDynamicCache,
    StaticCache: PrunedStaticCache,
}
CACHES = (*_PRUNED, *_PRUNED.values())


def state_of(cache: Cache | None) -> CacheState | None:
    """The state on this cache; None until vtfast has something to keep there."""
    return cache.vtfast if isinstance(cache, PrunedCacheMixin) else None


def adopt(cache: Cache, packed: bool, config: PatchConfig, batch: int) -> CacheState:
    """Make this cache a pruned one, if it is not yet; every attribute it has stays."""
    state = state_of(cache)
    if state is None:
        state = CacheState(packed, config, batch)
        cache.vtfast = state  # type: ignore[attr-defined]
        cache.__class__ = _PRUNED[type(cache)]
    elif not state.stages:
        state.packed, state.config = packed, config
    return state
