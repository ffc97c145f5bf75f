"""The bookkeeping of one forward of the text model, in packed rows.

Packed rows are the valid tokens of all samples one after another; padding has no row. Host
integers say how many each sample has; `origin` says where each row came from, `slots` where it sits
now. The two layouts (`layouts`) differ in `slots` alone: packed keeps rows where they are, padded
right-aligns each sample in a rectangle. What a method sees, selects and drops is the same in both.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtfast.errors import InputError
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.ragged import Ragged
from vtfast.methods import Method, SelectionContext
from vtfast.plan import Prune
from vtfast.runtime.cache import adopt, state_of
from vtfast.runtime.image_keys import mix64
from vtfast.runtime.layouts import Layout
from vtfast.runtime.ragged_cache import Spans
from vtfast.runtime.visual import Segment, Visual, join_frames, split_frames, to_device


@dataclass(frozen=True)
class Stage:
    """A stage of the plan, resolved for one model."""

    prune: Prune
    method: Method
    until: int  # first layer of the next stage, or the number of layers

    @property
    def layer(self) -> int:
        """The decoder layer whose input this stage prunes."""
        return self.prune.layer

    @property
    def score_layer(self) -> int | None:
        """The layer whose attention scores the tokens; None if the method wants no scores."""
        if "scores" not in self.method.needs:
            return None
        this = self.prune.options.get("score_layer") == "this" or self.layer == 0
        return self.layer if this else self.layer - 1

    def cut(self, segments: list[Segment]) -> list[Segment]:
        """The segments this stage has budgets for: images and clips, or frames."""
        if self.prune.options.get("per") == "frame":
            return split_frames(segments)
        return join_frames(segments)

    def drops(self, segments: list[Segment]) -> bool:
        """Whether any of these segments would lose a token."""
        return any(self.prune.count(s.original, s.left) < s.left for s in self.cut(segments))


@dataclass
class Query:
    """What a score layer saw: enough to recompute its attention row of the last token."""

    layer: nn.Module
    hidden: Tensor
    rotary: tuple[Tensor, Tensor]


class Pass:
    """One forward: opened by the text model's pre-hook, carried to its layers in their kwargs.

    Attributes:
        batch, chunk: shape of `inputs_embeds`, B and S.
        visual: what the multimodal hook found (without tokens for a chunk of text on a cache with
            gaps), None in a decoding step.
        mask: [B, P + S] attention mask over past and chunk, or None.
        spans: set in the packed layout once rows are packed; `attention.attend` reads it.
        layer_mask: set in the padded layout once the rectangle changed: a 1-tuple of the mask.
    """

    def __init__(
        self,
        shape: torch.Size,
        visual: Visual | None,
        mask: Tensor | None,
        cache: Any,
        layout: Layout,
        reason: str,
        settings: Any,
    ) -> None:
        self.batch, self.chunk = shape
        self.visual, self.mask, self.cache, self.layout = visual, mask, cache, layout
        self.reason, self.settings, self.impl = reason, settings, settings.impl
        self.query: Query | None = None
        self.spans: Spans | None = None
        self.layer_mask: tuple[Any] | None = None
        self.changed = False  # rows differ from what transformers thinks they are
        self.rows: Tensor | None = None  # int64 [n], packed rows of the visual tokens
        self.slots: Tensor | None = None  # int64 [rows], place in the running tensor; None: r
        self.origin: Tensor | None = None  # int64 [rows], b * S + s; None: r
        self.counts: list[tuple[int, list[int]]] = []  # visual tokens per sample from a layer on
        self.kept: dict[int, tuple[Tensor, list[int]]] = {}
        self.select_ms: dict[int, float] = {}
        if visual is None:
            return
        self.lengths = list(visual.lengths)
        self.segments = list(visual.segments)
        self.rows = visual.tokens
        self.counts.append((0, self._tokens()))
        if mask is not None and sum(self.lengths) < self.batch * self.chunk:
            valid = mask[:, -self.chunk :].flatten().bool()
            self.slots = torch.nonzero_static(valid, size=sum(self.lengths))[:, 0]
            if self.rows is not None:
                self.rows = (valid.cumsum(0) - 1)[self.rows]
        self.origin = self.slots

    @property
    def is_step(self) -> bool:
        """A decoding step: one new token per sample and no picture."""
        return self.visual is None

    def packed(self, t: Tensor) -> Tensor:
        """[b, s, D] as the layers have it → [rows, D]; b may be 1 for all samples alike."""
        if not self.changed and t.shape[0] != self.batch:
            t = t.expand(self.batch, *t.shape[1:])
        t = t.reshape(-1, t.shape[-1])
        return t if self.slots is None else t[self.slots]

    def enter(
        self, stage: Stage, module: nn.Module, hidden: Tensor, rotary: list[Tensor]
    ) -> Tensor:
        """Prune a layer's input, hidden [b, s, D]; `rotary` (cos, sin) is rewritten in place."""
        if self.is_step:
            self.layout.step(self, stage.layer, hidden)
            return hidden
        if stage.score_layer == stage.layer:
            self.query = Query(module, hidden, (rotary[0], rotary[1]))
        stay = self._select(stage, hidden) if self.segments else None
        self.query = None
        state = state_of(self.cache)
        if stay is None and not self.changed and not (state and state.has(stage.layer)):
            return hidden  # untouched: nothing dropped so far means bit identity
        source = self.slots if stay is None else self._compose(self.slots, stay)
        if stay is not None:
            self.origin = self._compose(self.origin, stay)
        if not self.changed:
            rotary[:] = [t.expand(self.batch, *t.shape[1:]) for t in rotary]
        hidden = self.layout.enter(self, stage, hidden, rotary, source, stay is not None)
        self.changed = True
        return hidden

    def _select(self, stage: Stage, hidden: Tensor) -> Tensor | None:
        """Rows that stay, int64 ascending; None if all do."""
        assert self.rows is not None
        prune = stage.prune
        segments = stage.cut(self.segments)
        lengths = [s.left for s in segments]
        keep = tuple(prune.count(s.original, s.left) for s in segments)
        if sum(keep) == sum(lengths):
            return None
        with torch.no_grad():
            context = SelectionContext(
                layer=stage.layer,
                features=self.packed(hidden)[self.rows],
                segments=Ragged.from_lengths(lengths, hidden.device),
                keep=keep,
                seed=self.settings.seed,
                options=prune.options,
                impl=self.impl,
                _keys=lambda: self._keys(prune.options.get("per") == "frame", hidden.device),
                _scores=self._scores,
            )
            self.segments = segments
            chosen = self._timed(stage, context)
            total = sum(self.lengths)
            flag = torch.ones(total, dtype=torch.bool, device=hidden.device)
            flag[self.rows] = False
            kept = self.rows[chosen]
            flag[kept] = True
            for segment, count in zip(segments, keep, strict=True):
                self.lengths[segment.sample] -= segment.left - count
                segment.left = count
            stay = torch.nonzero_static(flag, size=sum(self.lengths))[:, 0]
            self.counts.append((stage.layer, self._tokens()))
            if self.settings.record:
                self.kept[stage.layer] = (
                    kept if self.origin is None else self.origin[kept],
                    self.counts[-1][1],
                )
            self.rows = (flag.cumsum(0) - 1)[kept]
        return stay

    def _timed(self, stage: Stage, context: SelectionContext) -> Tensor:
        if not self.settings.record:
            return stage.method.select(context)
        device = context.features.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        chosen = stage.method.select(context)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.select_ms[stage.layer] = (time.perf_counter() - start) * 1e3
        return chosen

    def _scores(self) -> Tensor:
        """fp32 [n]: attention of each sample's last token to the visual tokens still there."""
        query = self.query
        if query is None:
            raise InputError("ctx.scores was read by a method registered with scores=False")
        assert self.rows is not None
        segments = Ragged.from_lengths(self.lengths, query.hidden.device)
        cos, sin = (self.packed(t) for t in query.rotary)
        scores = self.settings.family.last_query_scores(
            query.layer, self.packed(query.hidden), cos, sin, segments, impl=self.impl
        )
        return scores[self.rows]

    def _keys(self, per_frame: bool, device: torch.device) -> Tensor:
        """int64 [segments]: the picture's key; without pixels its number in the sample."""
        visual = self.visual
        assert visual is not None
        if visual.keys is not None:
            keys = visual.keys.to(device)
        else:
            numbers = [i for n in visual.images for i in range(n)]
            keys = to_device(numbers, device)
            state = state_of(self.cache)
            if state is not None and state.images is not None:
                samples = [b for b, n in enumerate(visual.images) for _ in range(n)]
                keys = keys + state.images[to_device(samples, device)]
        if not per_frame:
            return keys
        keys = keys[to_device([s.image for s in self.segments], device)]
        return mix64(keys, to_device([s.frame for s in self.segments], device))

    def finish(self, hidden: Tensor) -> Tensor:
        """Put the last hidden states [b, s, D] back to their places in [B, S, D], the rest 0."""
        self._remember(hidden.device)
        if not self.changed:
            return hidden
        rows = self.packed(hidden)
        if self.origin is not None:
            out = rows.new_zeros(self.batch * self.chunk, rows.shape[-1])
            rows = out.index_copy(0, self.origin, rows)
        return rows.view(self.batch, self.chunk, -1)

    def _remember(self, device: torch.device) -> None:
        """Note on the cache which pictures it has seen, and where the last one ended."""
        visual = self.visual
        brings_pictures = visual is not None and visual.tokens is not None
        state = state_of(self.cache)
        if brings_pictures and self.cache is not None and "keys" in self.settings.needs:
            state = adopt(self.cache, self.layout.is_packed, self.settings.plan)
        if state is None:
            return
        if visual is None or visual.tokens is None:
            state.since += self.chunk
            return
        images = to_device(visual.images, device)
        state.images = images if state.images is None else state.images + images
        state.picture = (visual.tokens % self.chunk).amax() if self.chunk else None
        state.tail, state.since = self.chunk, 0

    def gather(self, source: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Rows `source` of several [b, s, D] running tensors, in one launch."""
        flat = (t.reshape(-1, t.shape[-1]) for t in tensors)
        return gather_rows(source, *flat, impl=self.impl)

    def _tokens(self) -> list[int]:
        out = [0] * self.batch
        for s in self.segments:
            out[s.sample] += s.left
        return out

    @staticmethod
    def _compose(outer: Tensor | None, inner: Tensor) -> Tensor:
        return inner if outer is None else outer[inner]
