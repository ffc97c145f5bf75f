"""Keys and values in the packed layout: no padding, every sample as long as it is.

All layers from one stage to the next (a stage span) cache the same tokens, so one `PackedKVLayout`
of host integers says where each sample's tokens lie, and a `PackedKVLayer` only stores them.
Buffers are token-major `[rows, heads, D]`; a sample owns `length + ROOM` rows, so decoding writes
in place and copies once in `ROOM` steps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from vtfast.errors import StateError
from vtfast.kernels.ragged_decode import Decoder
from vtfast.runtime import names
from vtfast.runtime.host_read import to_device

ROOM = 128


class PackedKVLayout:
    """Lengths, places and growth of the tokens that the layers of a stage span have cached.

    Layers refer to their layout and not the other way round: a reference cycle would keep the
    memory of an unused cache until the garbage collector runs. Methods that move tokens are
    therefore given `layers`, all of the cache's, and move those that have this layout.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        self.device = device
        self.lengths = list(lengths)
        self.fresh = not any(lengths)
        self.turn = 0  # how often tokens were announced
        self.announced = False  # the cache is about to move or crop what its layers hold
        self._place([n + ROOM for n in lengths])

    def _place(self, capacities: list[int]) -> None:
        self.capacities = capacities
        self.starts = [sum(capacities[:b]) for b in range(len(capacities))]
        self.total = sum(capacities)
        self.where: Tensor | None = None  # int64 [new tokens]: buffer rows that `update` writes
        self._forget_step()

    def _forget_step(self) -> None:
        self._stepped = False  # whether the tokens announced last were one a sample
        self._ended: Tensor | None = None  # while stepping: int32 [B], lengths with the new token
        self._decoder: Decoder | None = None  # reads it

    def extend(self, new: list[int], layers: Sequence[object]) -> None:
        """Announce that every layer is about to append new[b] tokens to sample b."""
        self.turn += 1
        self.fresh = not any(self.lengths)
        before, lengths = self.lengths, [a + b for a, b in zip(self.lengths, new, strict=True)]
        if self.turn == 1 and self.fresh:  # no layer has a buffer yet
            self._place([n + ROOM for n in lengths])
        elif any(n > c for n, c in zip(lengths, self.capacities, strict=True)):
            self._move(list(range(len(new))), layers, extra=new)
        self.lengths = lengths
        stepped, self._stepped = self._stepped, set(new) == {1}
        if stepped and self._stepped and self.where is not None:
            # While room remains a step allocates nothing: its tensors are those of the step before,
            # so a captured CUDA graph reads what is true now.
            self.where.add_(1)
            if self._ended is not None:
                self._ended.add_(1)
            return
        self._ended = self._decoder = None
        with torch.inference_mode(False), torch.no_grad():  # else no later step may write it
            first = [s + n for s, n in zip(self.starts, before, strict=True)]
            self.where = row_numbers(first, new, self.device)

    def decoder(self) -> Decoder:
        """Decodes one new token a sample, the one announced, over all tokens of the sample."""
        if self._decoder is None:
            with torch.inference_mode(False), torch.no_grad():
                self._ended, starts = (
                    to_device(n, self.device).int() for n in (self.lengths, self.starts)
                )
            self._decoder = Decoder(self._ended, starts, max(self.capacities))
        return self._decoder

    def crop(self, remove: int) -> None:
        """Forget the last `remove` tokens of every sample."""
        self.lengths = [max(0, n - remove) for n in self.lengths]
        self._forget_step()

    def select(self, index: Tensor, layers: Sequence[object], *, alike: bool = False) -> None:
        """Reorder, drop or repeat samples; `alike`: each is replaced by one of the same length,
        as the beams of one prompt are; then nothing is read from the device."""
        even = len(set(self.lengths)) == len(set(self.capacities)) == 1
        if alike and not even and index.device.type == "cpu":  # comparing costs nothing here
            alike = [self.lengths[b] for b in index.numpy()] == self.lengths
        elif alike and not even:
            lengths = to_device(self.lengths, index.device)
            torch._assert_async((lengths[index] == lengths).all(), "beams of unequal prompts mixed")
        if not even and not alike:
            self._move(index.tolist(), layers)
            return
        if even:
            self.lengths = self.lengths[:1] * len(index)
        starts, last = to_device(self.starts, self.device)[index.to(self.device)], self.total - 1
        self._place(self.capacities[:1] * len(index) if even else self.capacities)
        capacities = to_device(self.capacities, self.device)
        shift = starts - to_device(self.starts, self.device)
        rows = torch.arange(self.total, device=self.device)
        source = rows + shift.repeat_interleave(capacities, output_size=self.total)
        self._copy(layers, source.clamp(max=last), rows)  # capacities may differ

    def _move(
        self, order: list[int], layers: Sequence[object], extra: list[int] | None = None
    ) -> None:
        """Samples in a new order, each with fresh room (and room for `extra` tokens more)."""
        starts, lengths = [self.starts[b] for b in order], [self.lengths[b] for b in order]
        self._place([n + e + ROOM for n, e in zip(lengths, extra or [0] * len(order), strict=True)])
        self.lengths = lengths
        source = row_numbers(starts, lengths, self.device)
        target = row_numbers(self.starts, lengths, self.device)
        self._copy(layers, source, target)

    def _copy(self, layers: Sequence[object], source: Tensor, target: Tensor) -> None:
        for layer in layers:
            if isinstance(layer, PackedKVLayer) and layer.layout is self:
                layer.move(source, target)


def row_numbers(starts: list[int], lengths: list[int], device: torch.device) -> Tensor:
    """int64 [sum lengths]: start_b, start_b + 1, … for every sample, from host integers."""
    if not any(lengths):
        return torch.zeros(0, dtype=torch.int64, device=device)
    parts = [torch.arange(s, s + n, device="cpu") for s, n in zip(starts, lengths, strict=True)]
    return to_device(torch.cat(parts), device)


def _token_major(t: Tensor) -> Tensor:
    """[batch, heads, tokens, D] → [batch * tokens, heads, D]."""
    return t.transpose(1, 2).flatten(0, 1)


class PackedKVLayer(CacheLayerMixin):
    """One layer's keys and values without padding; its `PackedKVLayout` says where they lie."""

    is_sliding = False
    is_croppable = True
    keys: Tensor  # [rows, heads, D]
    values: Tensor

    def __init__(self, layout: PackedKVLayout) -> None:
        super().__init__()
        self.layout = layout
        self._turn = layout.turn

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate buffers for key_states, value_states [batch, heads, tokens, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._room(_token_major(t)) for t in (key_states, value_states))
        self.is_initialized = True

    def _room(self, like: Tensor) -> Tensor:
        """An empty buffer for rows like these that can be written outside inference mode too."""
        with torch.inference_mode(False):
            return like.new_empty(self.layout.total, *like.shape[1:])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append tokens: [1, heads, tokens, D] packed, or [batch, heads, 1, D] in a decoding step.

        Returns what attention over them takes: the new tokens themselves while there is no past,
        else the buffers [total, heads, D].
        """
        if self._turn == self.layout.turn:
            raise StateError(
                "this KV cache was packed by vtfast.patch, and the model called with it runs no "
                "packed layout; patch it with the same plan and path, or start a new cache"
            )
        self._turn = self.layout.turn
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        where = self.layout.where
        assert where is not None
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            # One token is always a view, and cheaper to take.
            rows = new.squeeze(2) if new.shape[2] == 1 else _token_major(new)
            if rows.dtype != buffer.dtype:  # autocast has come or gone
                rows = rows.to(buffer.dtype)
            buffer.index_copy_(0, where, rows)
        if self.layout.fresh:
            return key_states, value_states
        return self.keys, self.values

    def adopt(self, layer: Any, valid: Tensor | None) -> None:
        """Take over a padded layer [batch, heads, length, D]; `valid`: flat places of real tokens,
        None when all are."""
        self.lazy_initialization(layer.keys, layer.values)
        where = row_numbers(self.layout.starts, self.layout.lengths, self.layout.device)
        for buffer, old in ((self.keys, layer.keys), (self.values, layer.values)):
            flat = _token_major(old)
            buffer.index_copy_(0, where, flat if valid is None else flat[valid])

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` of the old buffers to rows `target` of new ones."""
        if self.is_initialized:
            self.keys, self.values = (
                self._room(t).index_copy_(0, target, t[source]) for t in (self.keys, self.values)
            )

    def get_seq_length(self) -> int:
        """Tokens of the longest sample."""
        return max(self.layout.lengths, default=0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Sizes of a mask over this layer; masks are not used in the packed layout."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: the layer has no maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.23

    def _done_by_layout(self, _: object) -> None:
        """Leave it to the cache, which does this once for all layers of a span (see
        `kv_cache.PrunedCacheMixin`); refuse any other caller: nothing would have moved."""
        if not self.layout.announced:
            raise names.unsupported("a KV cache is moved or cropped in a way vtfast does not know")

    crop = batch_repeat_interleave = batch_select_indices = _done_by_layout
    reorder_cache = _done_by_layout  # type: ignore[assignment]
