"""What attention over packed tokens has to know, for one stage span in one forward.

Each class attends in its own way: `attend(query, key, value, scaling)` takes queries [1, H, tokens,
D] (in a decoding step [B, H, 1, D]) and what `PackedKVLayer.update` returned, and gives [1, tokens,
H, D] (or [B, 1, H, D]). In a decoding step of samples that are equally long nothing is to be known:
the cache returns views, to which transformers' SDPA attends.

The arguments of the ops come from our own bookkeeping, so nothing is checked.
"""

from dataclasses import dataclass

from torch import Tensor

from vtfast.kernels import _sdpa, reference
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import attend_unchecked
from vtfast.kernels.ragged_decode import Decoder


@dataclass(frozen=True)
class EqualSamples:
    """Samples with equally many new tokens, and equally many before: SDPA on views."""

    samples: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """key, value: [1, Hkv, tokens, D], the new ones, or [samples, Hkv, length, D]."""
        q, k, v = map(self._rows, (query, key, value))
        return _sdpa.attend(q, k, v, True, scaling).flatten(0, 1)[None]

    def _rows(self, t: Tensor) -> Tensor:
        """[samples, length, heads, D], a view."""
        if len(t) == self.samples:
            return t.transpose(1, 2)
        return t[0].transpose(0, 1).unflatten(0, (self.samples, -1))


@dataclass(frozen=True)
class RaggedSamples:
    """Samples of any lengths.

    queries, keys: segments of the new tokens and of those they attend to. index: int64, buffer rows
    of the keys; None when these are the new tokens themselves. kernel: whether Triton's attends.
    """

    queries: Ragged
    keys: Ragged
    index: Tensor | None
    kernel: bool

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """key, value: [1, Hkv, tokens, D], the new ones, or buffers [rows, Hkv, D]."""
        if key.ndim == 4:
            key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)
        tokens, how = query[0].transpose(0, 1), (_scale(query, scaling), self.index, self.kernel)
        return attend_unchecked(tokens, key, value, self.queries, self.keys, *how)[None]


@dataclass(frozen=True)
class RaggedStep:
    """A decoding step through Triton's kernels; all layers of the span share the decoder."""

    decoder: Decoder

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """key, value: buffers [rows, Hkv, D]."""
        return self.decoder(query.squeeze(2), key, value, _scale(query, scaling)).unsqueeze(1)


@dataclass(frozen=True)
class EagerStep:
    """A decoding step in plain PyTorch: lengths and first buffer rows of the samples."""

    lengths: list[int]
    starts: list[int]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """key, value: buffers [rows, Hkv, D]."""
        out = reference.ragged_decode(
            query.squeeze(2), key, value, self.lengths, starts=self.starts, scale=scaling
        )
        return out.unsqueeze(1)


PackedAttention = EqualSamples | RaggedSamples | RaggedStep | EagerStep


def _scale(query: Tensor, scaling: float | None) -> float:
    return query.shape[-1] ** -0.5 if scaling is None else scaling
