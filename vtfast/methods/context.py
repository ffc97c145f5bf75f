"""What a pruning method may look at: packed rows and host counts.

Never a batch, a mask or a cache; batching, generation, positions and the KV cache are the runtime's
business.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Sequences:
    """The whole sequences that the visual tokens are part of, packed: padding has no row.

    Attributes:
        hidden: [rows, D] hidden states entering the layer, un-normed, sample after sample.
        visual: int64 [n], the row of each visual token still there, ascending.
        lengths: rows of each sample, host ints.
        samples: for each segment of the visual tokens, the sample it belongs to; host ints.
        norm: the text model's final norm, [..., D] → [..., D].
    """

    hidden: Tensor
    visual: Tensor
    lengths: tuple[int, ...]
    samples: tuple[int, ...]
    norm: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def cut(self) -> Ragged:
        """How the rows are cut into samples."""
        return Ragged.from_lengths(self.lengths, self.hidden.device)


@dataclass(frozen=True, eq=False)
class Attention:
    """What the score layer attends with; H query heads, G key heads, d channels, rotated.

    Attributes:
        query: [samples, H, d], of each sample's last token.
        keys: [rows, G, d], of every row of the sequences.
        scale: of the logits before softmax.
    """

    query: Tensor
    keys: Tensor
    scale: float


@dataclass
class SelectionContext:
    """What a method may look at when one stage of a plan is due.

    Attributes:
        layer: decoder layer whose input is pruned.
        segments: how the visual tokens still there are cut into images, clips or frames;
            `segments.lengths` are host ints.
        keep: tokens to keep of each segment, host ints, 0 ≤ keep ≤ length.
        grids: (frames, rows, columns) each segment began with, host ints; 0 where nobody knows.
        sequences: the sequences the visual tokens are part of, text included.
        seed: the seed given to `patch`.
        options: the options of the stage, `Prune(..., name=value)`.
        impl: "auto" | "eager" | "triton", for the ops of `vtfast.ops`.
    """

    layer: int
    segments: Ragged
    keep: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]
    sequences: Sequences
    seed: int
    options: Mapping[str, object]
    impl: str
    _keys: Callable[[], Tensor] = field(repr=False)
    _attention: Callable[[Tensor], Attention] = field(repr=False)

    @cached_property
    def features(self) -> Tensor:
        """[n, D] hidden states entering the layer, un-normed (at layer 0 the projected embeddings),
        of the visual tokens still there, image after image."""
        return self.sequences.hidden[self.sequences.visual]

    @cached_property
    def keys(self) -> Tensor:
        """int64 [segments], made from the pixels: equal pictures have equal keys."""
        return self._keys()

    @cached_property
    def attention(self) -> Attention:
        """Queries and keys of the layer before (at layer 0, and with `score_layer="this"`, of the
        layer itself), recomputed from its input: every attention implementation will do."""
        return self._attention((self.sequences.cut.cu_seqlens[1:] - 1).long())

    @cached_property
    def scores(self) -> Tensor:
        """fp32 [n]: attention of each sample's last token, softmax over its keys, mean of heads.

        Source: FastV (arXiv 2403.06764), with the last token's row as its code reads.
        """
        seen = self.attention
        scores = last_query_scores(
            seen.query, seen.keys, self.sequences.cut, scale=seen.scale, impl=self.impl
        )
        return scores[self.sequences.visual]
