"""What a generation remembers, and where: on its cache, whose class gains a few overrides.

transformers asks a cache two different questions by one method. `get_seq_length()` without a layer
is how many tokens the generation has seen: positions and slicing of inputs follow from it.
`get_seq_length(i)` is what layer i holds: masks follow from it. With pruning they differ by `gap`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from vtfast.errors import StateError
from vtfast.plan import Plan
from vtfast.runtime.ragged_cache import Rows


class Holes:
    """The padded counterpart of `Rows`: which cached columns of a run of layers are real.

    `mask`: bool [batch, length], or None when all are.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask

    def step(self, given: Tensor | None) -> None:
        """One more column, real unless the attention mask `given` [batch, tokens] says no."""
        if self.mask is not None:
            last = torch.ones_like(self.mask[:, :1]) if given is None else given[:, -1:].bool()
            self.mask = torch.cat([self.mask, last], dim=1)

    def crop(self, remove: int) -> None:
        """Forget the last `remove` columns."""
        if self.mask is not None and remove:
            self.mask = self.mask[:, :-remove]

    def select(self, index: Tensor) -> None:
        """Reorder, drop or repeat samples."""
        if self.mask is not None:
            self.mask = self.mask[index.to(self.mask.device)]


@dataclass
class CacheState:
    """Everything vtfast keeps for one generation."""

    packed: bool
    plan: Plan  # what pruned it; another plan cannot go on
    rows: dict[int, Rows] = field(default_factory=dict)  # by layer of the prune stage: packed
    holes: dict[int, Holes] = field(default_factory=dict)  # the same: padded
    gap: int = 0  # tokens seen - columns of layer 0
    images: Tensor | None = None  # int64 [batch], images seen so far
    picture: Tensor | None = None  # int64 scalar: column of the last visual token in its chunk
    tail: int = 0  # length of that chunk
    since: int = 0  # tokens after that chunk

    @property
    def stages(self) -> list[Rows | Holes]:
        """All of either kind."""
        return [*self.rows.values(), *self.holes.values()]

    def has(self, layer: int) -> bool:
        """Whether the stage at this layer has changed what the cache holds."""
        return layer in self.rows or layer in self.holes


class PrunedCacheMixin:
    """Overrides for a cache whose layers hold different numbers of rows."""

    vtfast: CacheState

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens seen (no argument) or rows held by one layer."""
        if layer_idx is None:
            return super().get_seq_length(0) + self.vtfast.gap  # type: ignore[misc]
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget tokens at the end: -n removes n; n > 0 keeps n (transformers before 5.23)."""
        remove = -int(tokens_to_remove)
        if remove < 0:
            remove = max(0, self.get_seq_length() + remove)
        self._check_crop(remove)
        super().crop(-remove)  # type: ignore[misc]
        for stage in self.vtfast.stages:
            stage.crop(remove)
        self.vtfast.tail -= max(0, remove - self.vtfast.since)
        self.vtfast.since = max(0, self.vtfast.since - remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder samples (beam search)."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some samples."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for stage in self.vtfast.stages:
            batch = len(stage.lengths) if isinstance(stage, Rows) else _batch(stage)
            stage.select(torch.arange(batch).repeat_interleave(repeats))
        if self.vtfast.images is not None:
            self.vtfast.images = self.vtfast.images.repeat_interleave(repeats)

    def reset(self) -> None:
        """Forget everything, the pruning included (before 5.23 transformers keeps the length)."""
        cache: Cache = self  # type: ignore[assignment]
        cache.layers = [DynamicLayer() for _ in cache.layers]
        self.vtfast = CacheState(self.vtfast.packed, self.vtfast.plan)

    def _select(self, index: Tensor) -> None:
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        for stage in self.vtfast.stages:
            stage.select(index)
        if self.vtfast.images is not None:
            self.vtfast.images = self.vtfast.images[index.to(self.vtfast.images.device)]

    def _check_crop(self, remove: int) -> None:
        """Refuse to cut into a picture: layers hold different numbers of its tokens."""
        state = self.vtfast
        if remove <= state.since or state.picture is None:
            return
        most = state.since + state.tail - 1 - int(state.picture)
        if remove > most:
            raise StateError(
                f"cannot crop {remove} tokens off a pruned cache: its last picture ends {most} "
                "tokens before the end; crop less, or start a new cache"
            )


def _batch(holes: Holes) -> int:
    return 0 if holes.mask is None else holes.mask.shape[0]


class PrunedDynamicCache(PrunedCacheMixin, DynamicCache):
    """At module level, so that a pruned cache can be pickled."""


def state_of(cache: Cache | None) -> CacheState | None:
    """What vtfast keeps on this cache, None before the first stage that dropped something."""
    return cache.vtfast if isinstance(cache, PrunedCacheMixin) else None


def adopt(cache: Cache, packed: bool, plan: Plan) -> CacheState:
    """Make this DynamicCache a pruned one; every attribute it has stays."""
    state = state_of(cache)
    if state is None:
        state = CacheState(packed, plan)
        cache.vtfast = state  # type: ignore[attr-defined]
        cache.__class__ = PrunedDynamicCache
    return state
