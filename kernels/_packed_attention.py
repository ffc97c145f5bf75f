"""Attention over a packed batch as the layers of a model call it, one after another.

Each class attends in its own way: `attend(query, key, value, scale)` takes queries `[1, H, T, D]`
(in a decoding step `[B, H, 1, D]`) and gives `[1, T, H, D]` (or `[B, 1, H, D]`). The arguments come
from the bookkeeping of a KV cache, so nothing is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import reference
from .ragged import Ragged
from .ragged_attention import attend_unchecked
from .ragged_decode import Decoder


@dataclass(frozen=True)
class RaggedSamples:
    """Samples of any lengths.

    queries, keys: segments of the new tokens and of those they attend to. index: int64, cache rows
    of the keys; None when these are the new tokens themselves. kernel: whether Triton's attends.
    """

    queries: Ragged
    keys: Ragged
    index: torch.Tensor | None
    kernel: bool

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """key, value: `[1, Hkv, T, D]`, the new ones, or a cache `[rows, Hkv, D]`."""
        if key.ndim == 4:
            key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
        tokens, how = query[0].transpose(0, 1), (_scale(query, scale), self.index, self.kernel)
        return attend_unchecked(tokens, key, value, self.queries, self.keys, *how)[None]


@dataclass(frozen=True)
class RaggedStep:
    """One new token a sample. decoder: Triton's, which all layers share; None: plain PyTorch, for
    which `lengths` and `starts` say which rows of the cache a sample has."""

    decoder: Decoder | None
    lengths: Sequence[int]
    starts: Sequence[int]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """key, value: a cache `[rows, Hkv, D]`."""
        q = query.squeeze(2)
        if self.decoder is not None:
            return self.decoder(q, key, value, _scale(query, scale)).unsqueeze(1)
        out = reference.ragged_decode(q, key, value, self.lengths, starts=self.starts, scale=scale)
        return out.unsqueeze(1)


PackedAttention = RaggedSamples | RaggedStep


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale
