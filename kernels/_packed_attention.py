"""Attention over a packed batch as the layers of a model call it, one after another.

Each class attends in its own way: `attend(query, key, value, scale)` takes queries `[1, H, T, D]`
(in a decoding step `[B, H, 1, D]`) and gives `[1, T, H, D]` (or `[B, 1, H, D]`). The arguments come
from the bookkeeping of a KV cache, so nothing is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

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
    """One new token a sample, through Triton's kernels; all layers share the decoder."""

    decoder: Decoder

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """key, value: a cache `[rows, Hkv, D]`."""
        return self.decoder(query.squeeze(2), key, value, _scale(query, scale)).unsqueeze(1)


@dataclass(frozen=True)
class EagerStep:
    """One new token a sample, in plain PyTorch: which rows of the cache each sample has."""

    lengths: Sequence[int]
    starts: Sequence[int]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """key, value: a cache `[rows, Hkv, D]`."""
        out = reference.ragged_decode(
            query.squeeze(2), key, value, self.lengths, starts=self.starts, scale=scale
        )
        return out.unsqueeze(1)


@dataclass(frozen=True)
class CopiedStep:
    """One new token a sample, in plain PyTorch: the rows of all samples, copied side by side.

    rows: int64 `[B * longest]`, of the cache; behind a sample's last one it is repeated. mask: bool
    `[B, 1, 1, longest]`, which of them are the sample's.
    """

    rows: torch.Tensor
    mask: torch.Tensor

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        """key, value: a cache `[rows, Hkv, D]`."""
        k, v = (
            t.index_select(0, self.rows).unflatten(0, (len(query), -1)).transpose(1, 2)
            for t in (key, value)
        )
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(
            query, k, v, attn_mask=self.mask, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2)


def eager_step(
    lengths: Sequence[int], starts: Sequence[int], cache: torch.Tensor
) -> "EagerStep | CopiedStep":
    """How plain PyTorch decodes one more token of samples that have these rows of caches like this.

    A call for each sample would take as long as copying some 256 KiB (an estimate).
    """
    longest, device = max(lengths), cache.device
    if 2 * longest * cache[0].nbytes > 2**18:
        return EagerStep(lengths, starts)
    ends, firsts = (torch.tensor(n, device="cpu").to(device)[:, None] for n in (lengths, starts))
    columns = torch.arange(longest, device=device)
    rows = firsts + columns.minimum(ends - 1)
    return CopiedStep(rows.flatten(), (columns < ends)[:, None, None])


PackedAttention = RaggedSamples | RaggedStep | EagerStep | CopiedStep


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale
