"""`SelectionContext`, what a pruning method sees: packed tensors and host ints.

A method never sees a batch, a mask or a cache: the runtime handles batching, generation, positions
and the KV cache.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from vtfast.errors import InputError
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Sequences:
    """The prompts, text and visual tokens, packed: padding is left out, and so is what follows a
    prompt in a forward that scores its answer (see `vtfast.runtime.prompt`).

    Attributes:
        hidden: `[tokens, D]` hidden states entering the layer, un-normed, sample after sample.
        visual: int64 `[n]`, which of these tokens are the visual tokens still there, ascending.
        lengths: tokens of each sample, host ints.
        samples: for each segment of the visual tokens, the sample it belongs to; host ints.
        norm: the text model's final norm, `[..., D]` → `[..., D]`.
    """

    hidden: Tensor
    visual: Tensor
    lengths: tuple[int, ...]
    samples: tuple[int, ...]
    norm: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def segments(self) -> Ragged:
        """Which tokens belong to which sample; `segments.lengths` is `lengths`."""
        return Ragged.from_lengths(self.lengths, self.hidden.device)

    @cached_property
    def text(self) -> Tensor:
        """int64 `[m]`, which of these tokens are text, ascending: all but the visual tokens."""
        is_text = torch.ones(sum(self.lengths), dtype=torch.bool, device=self.hidden.device)
        is_text.index_fill_(0, self.visual, False)  # `[…] = False` would wait for a GPU
        return torch.nonzero_static(is_text, size=sum(self.lengths) - len(self.visual))[:, 0]

    @property
    def cut(self) -> Ragged:
        """The old name of `segments`, deprecated and gone in 0.3."""
        _warn_renamed("ctx.sequences.cut", "ctx.sequences.segments")
        return self.segments


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries and keys of the score layer, after rotation, with H query heads and G key heads.

    Attributes:
        query: `[samples, H, d]`, of the last token of each sample's prompt.
        keys: `[tokens, G, d]`, of every token of the sequences.
        scale: factor on the logits before the softmax.
        group: the processes that hold the other heads of a tensor-parallel model, H and G being
            this process's own; None where all heads are here.
    """

    query: Tensor
    keys: Tensor
    scale: float
    group: torch.distributed.ProcessGroup | None = field(default=None, repr=False)

    def of_all_heads(self) -> "Attention":
        """The same with the heads of every process, in the order of the whole model."""
        if self.group is None:
            return self
        query, keys = (_gather_heads(t, self.group) for t in (self.query, self.keys))
        return Attention(query, keys, self.scale)

    def sum_over_heads(self, own: Tensor) -> Tensor:
        """The sum of what each process made of its own heads; equal bits on all of them, so that
        they select the same tokens. Overwrites `own`."""
        if self.group is not None:
            torch.distributed.all_reduce(own, group=self.group)
        return own


@dataclass
class SelectionContext:
    """What a method may look at when a stage of the plan is reached.

    Attributes:
        layer: decoder layer whose input is pruned.
        segments: which of the visual tokens still there belong to which image, clip, frame or
            tile; `segments.lengths` are host ints.
        keep: tokens to keep of each segment, host ints, 0 ≤ keep ≤ length.
        parts: grids of each segment before any pruning, one after another in reading order, each
            (frames, rows, columns), host ints; 0 if unknown. Mostly one; see `grids`.
        sequences: the sequences that the visual tokens are part of, text included.
        seed: the seed given to `patch`.
        options: the options of the stage, `Prune(..., name=value)`.
        impl: "auto" | "eager" | "triton", for the ops of `vtfast.ops`.
    """

    layer: int
    segments: Ragged
    keep: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], ...], ...]
    sequences: Sequences
    seed: int
    options: Mapping[str, object]
    impl: str
    _image_hash: Callable[[], Tensor] = field(repr=False)
    _attention: Callable[[], Attention] = field(repr=False)
    _vision_scores: Callable[[], Tensor] = field(repr=False)
    _reads: Collection[str] = field(repr=False)  # what the method says that it reads

    @classmethod
    def of_features(
        cls,
        features: Tensor,
        segments: Ragged,
        keep: Sequence[int],
        *,
        parts: Sequence[Sequence[tuple[int, ...]]] | None = None,
        seed: int = 0,
        options: Mapping[str, object] | None = None,
        impl: str = "auto",
        image_hash: Callable[[], Tensor] | None = None,
    ) -> "SelectionContext":
        """What a method sees before the language model where there is nothing but pictures: to
        choose in an engine of your own, or to try a method. Text, scores and vision scores cannot
        be read.

        Args:
            features: `[n, D]` projected embeddings, picture after picture.
            segments: which of them belong to which picture.
            keep: tokens to keep of each picture.
            parts: as the attribute; None: unknown.
            image_hash: makes int64 `[pictures]`; without it `ctx.image_hash` is 0, 1, ….

        Example:
            >>> ctx = SelectionContext.of_features(x, Ragged.from_lengths([576], x.device), [288])
            >>> kept = x[vtfast.methods.method("diversity").select(ctx)]
        """
        count, device = len(segments.lengths), features.device
        parts = [((0, 0, 0),)] * count if parts is None else parts
        every = torch.arange(len(features), device=device)
        return cls(
            layer=0,
            segments=segments,
            keep=tuple(keep),
            parts=tuple(map(tuple, parts)),
            sequences=Sequences(features, every, segments.lengths, tuple(range(count)), _as_it_is),
            seed=seed,
            options=dict(options or {}),
            impl=impl,
            _image_hash=image_hash or (lambda: torch.arange(count, device=device)),
            _attention=_unknown,
            _vision_scores=_unknown,
            _reads=(),
        )

    @cached_property
    def features(self) -> Tensor:
        """`[n, D]` hidden states of the visual tokens still there, image after image.

        They are what enters the layer, un-normed; at layer 0 the projected embeddings.
        """
        return self.sequences.hidden[self.sequences.visual]

    @property
    def text(self) -> Tensor:
        """`[m, D]` hidden states of the prompts' text entering the layer, sample after sample.

        At layer 0 they are embeddings. What follows a prompt (an answer, drafts) is left out, as
        everywhere in `sequences`; words of the chat template and of a system prompt are text too.
        """
        self._check_read("text")
        return self.sequences.hidden[self.sequences.text]

    @cached_property
    def text_segments(self) -> Ragged:
        """Which rows of `text` belong to which sample; segment i of the visual tokens belongs to
        sample `sequences.samples[i]`."""
        self._check_read("text")
        counts = list(self.sequences.lengths)
        for sample, length in zip(self.sequences.samples, self.segments.lengths, strict=True):
            counts[sample] -= length
        return Ragged.from_lengths(counts, self.segments.device)

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """(frames, rows, columns) of each segment before any pruning, host ints; 0 if unknown, or
        if it has several grids: tiles, or an overview before the details."""
        return tuple(parts[0] if len(parts) == 1 else (0, 0, 0) for parts in self.parts)

    @cached_property
    def image_hash(self) -> Tensor:
        """int64 `[segments]`, a hash of each picture's pixels: equal pictures have equal hashes."""
        return self._image_hash()

    @property
    def keys(self) -> Tensor:
        """The old name of `image_hash`, deprecated and gone in 0.3."""
        _warn_renamed("ctx.keys", "ctx.image_hash")
        return self.image_hash

    @keys.setter
    def keys(self, value: Tensor) -> None:
        _warn_renamed("ctx.keys", "ctx.image_hash")
        self.image_hash = value

    @cached_property
    def attention(self) -> Attention:
        """Queries and keys of the layer before; of this one at layer 0 or `score_layer="this"`.

        They are computed from that layer's input, so every attention implementation works. In a
        tensor-parallel model the first read gathers the heads of all processes, so every process
        has to read it; `scores` and `key_norms` exchange one number a token instead.
        """
        return self._own_heads.of_all_heads()

    @cached_property
    def _own_heads(self) -> Attention:
        self._check_read("scores")
        return self._attention()

    @cached_property
    def key_norms(self) -> Tensor:
        """fp32 `[tokens]`: L1 norm of each token's keys, after rotation, over all key heads."""
        own = self._own_heads
        return own.sum_over_heads(own.keys.flatten(1).float().abs().sum(1))

    @cached_property
    def scores(self) -> Tensor:
        """fp32 `[n]`: attention that each visual token gets from the last token of its prompt.

        The softmax is over all keys of the prompt, the mean over heads. Source: FastV (arXiv
        2403.06764), with the row of the last token, as its code computes.
        """
        own = self._own_heads
        scores = last_query_scores(
            own.query, own.keys, self.sequences.segments, scale=own.scale, impl=self.impl
        )[self.sequences.visual]
        return scores if own.group is None else own.sum_over_heads(scores) / own.group.size()

    @cached_property
    def vision_scores(self) -> Tensor:
        """fp32 `[n]`: attention that each visual token's patches get in the vision tower.

        It is that of the layer whose output becomes the features: in a tower with a class token
        from this token, else from all patches of the same frame or tile, mean over them; a mean
        over heads, and over the patches that are merged to one token. Tokens that are no patches
        (line ends) have 0. Source: the score of VisionZip (arXiv 2412.04467).
        """
        self._check_read("vision_scores")
        return self._vision_scores()

    def _check_read(self, what: str) -> None:
        if what not in self._reads:
            raise InputError(
                f"the method reads ctx.{what} and does not say so; register the method with "
                f"{what}=True"
            )


def _as_it_is(hidden: Tensor) -> Tensor:
    return hidden


def _unknown() -> Any:
    raise InputError("the context was made of features alone")


def _gather_heads(own: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    """[n, heads, d] of every process, side by side."""
    parts = [torch.empty_like(own) for _ in range(group.size())]
    torch.distributed.all_gather(parts, own.contiguous(), group=group)
    return torch.cat(parts, 1)


def _warn_renamed(old: str, new: str) -> None:
    message = f"{old} is now {new}; {old} is gone in vtfast 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
