"""Pack sequences that start from the same decoder layer into one batch without repeated tokens.

- The text of a sample alone is a sequence. A causal model gives the tokens before a kept visual
  token the same states with and without it. So a sequence with visual tokens holds only its
  tokens from the first of these on; the keys and values of the earlier ones are read from the
  text alone, through an index.
- Sequences of equal shape are adjacent, so that plain PyTorch attends to them in one call.
- A recurrent layer takes whole sequences: for it they are padded, the earlier tokens in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vtfast.kernels._packed_attention import RaggedSamples
from vtfast.kernels.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence to run: the text of a sample and some of its visual tokens.

    `columns` are the places of these tokens in the sample's sequence, int64 ascending, or none;
    the first `tokens` tokens of the answer are predicted.
    """

    sample: int
    columns: np.ndarray
    tokens: int


@dataclass(frozen=True, eq=False)
class Padded:
    """n sequences of a packed batch at their full lengths, up to L, padded on the left.

    `rows`: int64 [n, L], packed rows; 0 in padding. `real`: bool [n, L], False in padding. `own`:
    bool [n, L], the tokens that the packed batch holds for this sequence: `x[own]` packs [n, L, D].
    """

    rows: Tensor
    real: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """A packed batch.

    `rows`: int64, rows of the flattened batch [B * S] it is made of. `ends`: int64, packed rows
    that predict `targets`, `tokens[i]` of them for the i-th sequence. `order[n]` is the place of
    the n-th sequence asked for.
    """

    rows: Tensor
    attention: RaggedSamples
    ends: Tensor
    targets: Tensor
    tokens: list[int]
    order: list[int]

    @cached_property
    def padded(self) -> Padded:
        """The same sequences, for layers that take no index."""
        index, whole = self.attention.index, self.attention.keys
        assert index is not None
        columns = torch.arange(whole.max_seqlen, 0, -1, device=index.device)  # from the end
        real, own = (
            columns <= part.cu_seqlens.diff()[:, None] for part in (whole, self.attention.queries)
        )
        rows = index.new_zeros(real.shape)
        rows[real] = index
        return Padded(rows, real, own)


@dataclass(frozen=True, eq=False)
class TextOfBatch:
    """The text of a batch [B, S]: what remains without its visual tokens.

    `text`: int64 per sample, columns of its text, with the answer except its last token.
    `answers`: token ids per sample; the last len(answer) columns predict them. `length`: S.
    """

    text: Sequence[np.ndarray]
    answers: Sequence[Sequence[int]]
    length: int

    def pack(self, kept: Sequence[Kept], device: torch.device, kernel: bool) -> Packing:
        """Pack the text of every sample, then the sequences that keep visual tokens, by shape.

        kernel: whether Triton's attends to them."""
        rows, keys, lengths, total = [], [], [], 0
        bare: dict[int, int] = {}  # sample -> the first packed row of its text
        for sample in sorted({k.sample for k in kept}):
            text, bare[sample] = self.text[sample], total
            rows.append(sample * self.length + text)
            keys.append(np.arange(total, total + len(text)))
            lengths.append(len(text))
            total += len(text)

        owned = [self._own(k) for k in kept]
        before = [
            np.searchsorted(self.text[k.sample], k.columns[0]) if len(k.columns) else 0
            for k in kept
        ]
        order = sorted(range(len(kept)), key=lambda i: (before[i], len(owned[i]), kept[i].sample))
        ends: list[np.ndarray] = []
        for i in order:
            k, mine = kept[i], owned[i]
            predicting = self._predicting(k)
            if not len(mine):
                ends.append(bare[k.sample] + np.searchsorted(self.text[k.sample], predicting))
                continue
            shared = bare[k.sample] + np.arange(before[i])
            rows.append(k.sample * self.length + mine)
            keys.append(np.concatenate([shared, np.arange(total, total + len(mine))]))
            ends.append(total + np.searchsorted(mine, predicting))
            lengths.append(len(mine))
            total += len(mine)

        queries, key_segments = (
            Ragged.from_lengths(n, device) for n in (lengths, [len(k) for k in keys])
        )
        targets = [t for i in order for t in self.answers[kept[i].sample][: kept[i].tokens]]
        return Packing(
            _ints(rows, device),
            RaggedSamples(queries, key_segments, _ints(keys, device), kernel),
            _ints(ends, device),
            torch.tensor(targets, device=device),
            [kept[i].tokens for i in order],
            np.argsort(order).tolist(),
        )

    def _predicting(self, k: Kept) -> np.ndarray:
        """Columns that predict the first tokens of the answer."""
        first = self.length - len(self.answers[k.sample])
        return np.arange(first, first + k.tokens)

    def _own(self, k: Kept) -> np.ndarray:
        """Columns whose hidden states differ from those of the text alone; none without tokens."""
        if not len(k.columns):
            return k.columns
        text = self.text[k.sample]
        after = text[(text > k.columns[0]) & (text <= self._predicting(k)[-1])]
        return np.sort(np.concatenate([k.columns, after]))


def _ints(parts: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)
