"""The bookkeeping of one forward of the text model, in packed rows.

Packed rows are the valid tokens of all samples one after another; padding has no row. Host
integers say how many each sample has; `origin` says where each row came from, `slots` where it sits
now. The two layouts (`layouts`) differ in `slots` alone: packed keeps rows where they are, padded
right-aligns each sample in a rectangle. What a method sees, selects and drops is the same in both.
"""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtfast.errors import InputError
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.image_hash import mix64
from vtfast.kernels.ragged import Ragged
from vtfast.methods import Attention, SelectionContext, Sequences
from vtfast.runtime import names
from vtfast.runtime.kv_cache import adopt, state_of
from vtfast.runtime.layouts import Layout
from vtfast.runtime.packed_kv_cache import Spans
from vtfast.runtime.stage import Query, Stage
from vtfast.runtime.visual_tokens import Visual, to_device


class Pass:
    """One forward: opened by the text model's pre-hook, carried to its layers in their kwargs.

    Attributes:
        batch, chunk: shape of `inputs_embeds`, B and S.
        visual: what the multimodal hook found (without tokens for a chunk of text on a cache with
            gaps), None in a decoding step.
        mask: [B, P + S] attention mask over past and chunk, or None.
        cache: this forward's, once a stage has been reached; None without one.
        spans: set in the packed layout once rows are packed; `attention.attend` reads it.
        given: keyword arguments that layers get from now on instead of transformers' own; stays
            empty in the packed layout.
    """

    def __init__(
        self,
        shape: torch.Size,
        visual: Visual | None,
        mask: Tensor | None,
        layout: Layout,
        reason: str,
        settings: Any,
    ) -> None:
        self.batch, self.chunk = shape
        self.visual, self.mask, self.layout = visual, mask, layout
        self.reason, self.settings, self.impl = reason, settings, settings.impl
        self.cache: Any = None
        self.query: Query | None = None
        self.spans: Spans | None = None
        self.shared: list[Tensor] | None = None  # rotary rows, which a packed stage rewrites
        self.reached: list[int] = []  # stages' layers
        self.ragged: int | None = None  # the first layer that attends by `spans`
        self.attended = 0  # how many did
        self.given: dict[str, Any] = {}
        self.changed = False  # rows differ from what transformers thinks they are
        self.unpads = False  # padding goes at layer 0 already, because visual tokens will
        self.rows: Tensor | None = None  # int64 [n], packed rows of the visual tokens
        self.slots: Tensor | None = None  # int64 [rows], place in the running tensor; None: r
        self.origin: Tensor | None = None  # int64 [rows], b * S + s; None: r
        self.counts: list[tuple[int, list[int]]] = []  # visual tokens per sample from a layer on
        self.kept: dict[int, tuple[Tensor, list[int]]] = {}
        self.select_ms: dict[int, float] = {}
        self._ran: dict[int, tuple[Tensor | None, dict[str, Any]]] = {}
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
            stages = settings.stages.values()
            self.unpads = layout.is_packed and any(s.drops(self.segments) for s in stages)
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
        self, number: int, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """What decoder layer `number` gets: hidden states [b, s, D] and keyword arguments.

        Gradient checkpointing runs a layer again in backward, before transformers 5.23 with its
        hooks: what was decided the first time holds.
        """
        if number in self._ran:
            index, given = self._ran[number]
            return self._take(index, hidden)[0], {**kwargs, **given}
        index, stage = None, self.settings.stages.get(number)
        kwargs = {**kwargs, **self.given}
        self._check_handed(module, hidden, kwargs)
        if stage is not None:
            self.reached.append(number)
            self.cache = names.handed_cache(kwargs, module)  # the text model may have just made it
            if self.is_step:
                self._step(stage, hidden, kwargs)
            else:
                hidden, index = self._prune(stage, module, hidden, kwargs)
            if self.spans is not None and self.ragged is None:
                self.ragged = number
        if number in self.settings.scored and self.rows is not None:
            self.query = Query(module, hidden, tuple(kwargs["position_embeddings"]))
        if module.training:
            self._ran[number] = (index, self.given)
        return hidden, kwargs

    def check_rotary(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """Every layer must hold the list of rotary rows that packed stages rewrite."""
        if self.shared is not None and kwargs.get("position_embeddings") is not self.shared:
            raise names.missing("one list of rotary rows for all layers", type(module).__name__)

    def _check_handed(self, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """A layer must get as many hidden states and rotary rows as the bookkeeping has."""
        rotary = names.handed("position_embeddings", kwargs, module)
        if self.layout.is_packed and not isinstance(rotary, list):
            raise names.missing("one list of rotary rows for all layers", type(module).__name__)
        samples, length = self.batch, self.chunk
        if self.changed and self.layout.is_packed:
            samples, length = 1, sum(self.lengths)
        elif self.changed:
            length = max(self.lengths)
        if hidden.shape[:2] != (samples, length) or rotary[0].shape[1] != length:
            raise InputError(
                f"{type(module).__name__} got {tuple(hidden.shape[:2])} hidden states and "
                f"rotary rows of {rotary[0].shape[1]}, expected {(samples, length)}; position_ids "
                "must be those of the tokens in this call"
            )

    def _step(self, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """A decoding step reaches a stage: its layers hold rows of their own."""
        state = state_of(self.cache)
        if state and stage.layer in state.stages:
            mask = self.layout.step(self, stage.layer, state.stages[stage.layer], hidden)
            self._hand_out(stage, hidden, list(kwargs["position_embeddings"]), mask, kwargs)

    def _prune(
        self, stage: Stage, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """A prefill reaches a stage; returns hidden states and the rows they took (None: all)."""
        rotary, index = list(kwargs["position_embeddings"]), None
        if stage.score_layer == stage.layer:
            self.query = Query(module, hidden, tuple(rotary))
        stay = self._select(stage, hidden) if self.segments else None
        self.query = None
        state = state_of(self.cache)
        begun = self.changed or self.unpads or (state and stage.layer in state.stages)
        if stay is None and not begun:
            return hidden, None  # nothing dropped so far means bit identity
        if stay is not None or not self.changed:
            source = self.slots
            if stay is not None:
                source, self.origin = (_compose(rows, stay) for rows in (self.slots, self.origin))
            if not self.changed:
                rotary = [t.expand(self.batch, *t.shape[1:]) for t in rotary]
            index = self.layout.place(self, source, hidden.device)
            self.changed = True
            hidden, *rotary = self._take(index, hidden, *rotary)
        mask = self.layout.enter(self, stage, hidden)
        self._hand_out(stage, hidden, rotary, mask, kwargs)
        return hidden, index

    def _take(self, index: Tensor | None, *tensors: Tensor) -> list[Tensor]:
        """Rows `index` of running tensors [b, s, D] in one launch, in the shape of the layout."""
        flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
        if index is not None:
            flat = list(gather_rows(index, *flat, impl=self.impl))
        samples = 1 if self.layout.is_packed else self.batch
        return [t.view(samples, -1, t.shape[-1]) for t in flat]

    def _hand_out(
        self, stage: Stage, hidden: Tensor, rotary: list[Tensor], mask: Any, kwargs: dict[str, Any]
    ) -> None:
        """Rotary rows and mask, for the layers from this stage on."""
        if self.settings.positions == "renumber":
            rotary = self._renumber(stage, hidden, rotary)
        if self.layout.is_packed:
            self.shared = kwargs["position_embeddings"]
            self.shared[:] = rotary  # every layer holds this list
            return
        # No positions: FlashAttention would read gaps as packed sequences.
        self.given = {"attention_mask": mask, "position_ids": None}
        self.given["position_embeddings"] = tuple(rotary)
        kwargs.update(self.given)

    def _renumber(self, stage: Stage, hidden: Tensor, rotary: list[Tensor]) -> list[Tensor]:
        """Phases of positions 0, 1, … in each sample that has lost tokens; others keep theirs."""
        state = state_of(self.cache)
        if state and self.is_step:
            moved = state.moved[stage.layer]
        else:
            losers = {s.sample for s in self.segments if s.left < s.original}
            moved = to_device([b in losers for b in range(self.batch)], hidden.device).bool()
        if state:
            state.moved[stage.layer] = moved
        cached = state.stages[stage.layer] if state else None
        positions = self.layout.positions(self, stage.layer, cached, hidden)
        moved = self.layout.per_row(self, moved)[..., None]
        axes = self.settings.family.position_axes
        fresh = self.settings.parts.rotary(hidden, positions.expand(*axes, *positions.shape))
        return [torch.where(moved, new, old) for new, old in zip(fresh, rotary, strict=True)]

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
            samples = tuple(s.sample for s in segments)
            rows, norm = self.packed(hidden), self.settings.parts.norm
            sequences = Sequences(rows, self.rows, tuple(self.lengths), samples, norm)
            context = SelectionContext(
                layer=stage.layer,
                segments=Ragged.from_lengths(lengths, hidden.device),
                keep=keep,
                grids=tuple(s.grid for s in segments),
                sequences=sequences,
                seed=self.settings.seed,
                options=prune.options,
                impl=self.impl,
                _image_hash=lambda: self._keys(prune.options.get("per") == "frame", hidden.device),
                _attention=self._attention,
            )
            self.segments = segments
            chosen = self._timed(stage, context)
            total = sum(self.lengths)
            flag = torch.ones(total, dtype=torch.bool, device=hidden.device)
            flag.index_fill_(0, self.rows, False)
            kept = self.rows[chosen]
            flag.index_fill_(0, kept, True)
            for segment, count in zip(segments, keep, strict=True):
                self.lengths[segment.sample] -= segment.left - count
                segment.left = count
            stay = torch.nonzero_static(flag, size=sum(self.lengths))[:, 0]
            self.counts.append((stage.layer, self._tokens()))
            if self.settings.record:
                self.kept[stage.layer] = _compose(self.origin, kept), self.counts[-1][1]
            self.rows = (flag.cumsum(0) - 1)[kept]
        return stay

    def _timed(self, stage: Stage, context: SelectionContext) -> Tensor:
        if not self.settings.record:
            return stage.method.select(context)
        device = context.segments.device
        wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
        wait()
        start = time.perf_counter()
        chosen = stage.method.select(context)
        wait()
        self.select_ms[stage.layer] = (time.perf_counter() - start) * 1e3
        return chosen

    def _attention(self, last: Tensor) -> Attention:
        """What the score layer attends with: queries of the rows `last`, keys of all rows."""
        query = self.query
        if query is None:
            raise InputError("attention scores were read; register the method with scores=True")
        seen = [self.packed(t) for t in (query.hidden, *query.rotary)]
        return self.settings.family.attention(query.layer, *seen, last)

    def _keys(self, per_frame: bool, device: torch.device) -> Tensor:
        """int64 [segments]: the picture's key; without pixels its number in the sample."""
        visual = self.visual
        assert visual is not None
        if visual.keys is not None:
            keys = visual.keys().to(device)
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
        layers, model = self.settings.parts.layers, type(self.settings.parts.text).__name__
        if self.reached != list(self.settings.stages):
            raise names.missing("keyword argument passed on to the layers", model)
        if self.ragged is not None and self.attended != len(layers) - self.ragged:
            raise names.missing("keyword argument passed on to attention", model)
        self._remember(hidden.device)
        if not self.changed:
            return hidden
        rows = self.packed(hidden)
        if self.origin is not None:
            out = rows.new_zeros(self.batch * self.chunk, rows.shape[-1])
            rows = out.index_copy_(0, self.origin, rows)
        return rows.view(self.batch, self.chunk, -1)

    def _remember(self, device: torch.device) -> None:
        """Note on the cache which pictures it has seen, and how far back it can be cropped."""
        visual, state, free = self.visual, state_of(self.cache), []
        if visual is None:
            return
        if (
            visual.tokens is not None
            and self.cache is not None
            and "image_hash" in self.settings.needs
        ):
            state = adopt(self.cache, self)
        if state is None:
            return
        if visual.tokens is not None:
            images = to_device(visual.images, device)
            state.images = images if state.images is None else state.images + images
            free.append(self.chunk - 1 - (visual.tokens % self.chunk).amax())
        if self.mask is not None and sum(visual.lengths) < self.batch * self.chunk:
            free.append(self.mask[:, -self.chunk :].flip(1).long().cumprod(1).sum(1).amin())
        if free:
            state.free, state.end = torch.stack(free).amin(), self.cache.get_seq_length()

    def _tokens(self) -> list[int]:
        out = [0] * self.batch
        for s in self.segments:
            out[s.sample] += s.left
        return out


def _compose(outer: Tensor | None, inner: Tensor) -> Tensor:
    return inner if outer is None else outer[inner]
