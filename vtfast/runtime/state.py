"""What one forward of the text model knows and does: which tokens are there, and where.

All bookkeeping is in packed tokens: the real tokens of all samples one after another, without
padding. Host integers say how many each sample has; `origin` says where each token came
from, `slots` where it sits now. The two layouts (`padded`, `packed`) differ in `slots` alone; what
a method sees, selects and drops is the same in both.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vtfast.kernels.gather import gather_unchecked
from vtfast.kernels.ragged import Ragged
from vtfast.methods.segments import Segment
from vtfast.methods.stage import Stage
from vtfast.report import Report
from vtfast.runtime import names
from vtfast.runtime.call import FLASH_ARGUMENTS
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.handed import Handed
from vtfast.runtime.host_read import to_device
from vtfast.runtime.kv_cache import adopt, state_of
from vtfast.runtime.layout import Chunk, Entry
from vtfast.runtime.model import Parts
from vtfast.runtime.packed import Packed
from vtfast.runtime.padded import Padded
from vtfast.runtime.selection import Selector
from vtfast.runtime.visual_tokens import VisualTokens

Kwargs = dict[str, Any]
Layout = Padded | Packed


class ForwardState:
    """One forward: opened by the text model's pre-hook, carried to its layers in their kwargs.

    Attributes:
        rows, chunk: shape of `inputs_embeds`, B and S.
        batch: samples; more than rows where several were packed into one.
        visual: what the multimodal hook found (without tokens for a chunk of text on a pruned
            cache), None in a decoding step: one new token per sample and no picture.
        mask: [B, P + S] attention mask over past and chunk, or None.
        cache: this forward's, once a stage has been reached; None without one.
        every_layer: whether every layer is handed what changes by its hook, in keyword arguments.
            Otherwise only layers with a stage have work to do: the others share the list of rotary
            rows, and `attention.attend` finds in `span` how to attend.
        kernels: whether Triton's gather rows.
        given: with `every_layer`, keyword arguments that layers get from now on instead of
            transformers'.
        span: what the layers up to the next stage attend with; None while nothing has changed.
    """

    def __init__(
        self,
        shape: torch.Size,
        visual: VisualTokens | None,
        mask: Tensor | None,
        layout: Layout,
        config: PatchConfig,
        parts: Parts,
        *,
        reason: str,
        every_layer: bool,
        kernels: bool,
    ) -> None:
        self.rows, self.chunk = shape
        self.batch, self.is_step = self.rows, visual is None
        self.visual, self.mask, self.layout, self.reason = visual, mask, layout, reason
        self.config, self.parts, self.kernels = config, parts, kernels
        self.every_layer = every_layer and not layout.is_packed
        self.cache: Cache | None = None
        self.selector = Selector(config, parts, visual)
        self.span: Entry | None = None
        self.handed = Handed(not self.every_layer)
        self.given: dict[str, Any] = {}
        self.flat = False  # running tensors are [1, tokens, D]; else they are rectangles [b, s, D]
        self.changed = False  # tokens differ from what transformers thinks they are
        self.rearranges = False  # at layer 0: padding goes, packed samples get own rows
        self.tokens: Tensor | None = None  # int64 [n], which packed tokens are visual
        self.slots: Tensor | None = None  # int64 [tokens], place in the running tensor; None: all
        self.origin: Tensor | None = None  # int64 [tokens], b * S + s; None: all
        self.samples: Ragged | None = None  # `lengths`, also on the device; None if never needed
        self.counts: list[tuple[int, list[int]]] = []  # visual tokens per sample from a layer on
        self.kept: dict[int, tuple[Tensor, list[int]]] = {}
        self._ran: dict[int, tuple[Tensor | None, dict[str, Any]]] = {}
        self._between: Sequence[Tensor] = ()  # features to add behind layer 0, 1, …
        self._added: dict[int, tuple[Tensor, Tensor]] = {}  # before a layer: where, and which
        if visual is None:
            self.lengths = [1] * self.batch
            self.segments: list[Segment] = []
            return
        self.lengths, self.batch = list(visual.lengths), len(visual.lengths)
        self.segments = list(visual.segments)
        self.tokens = visual.tokens
        self.counts.append((0, self._visual_tokens()))
        arranged = self.batch > self.rows
        if mask is not None and sum(self.lengths) < self.batch * self.chunk:
            valid = mask[:, -self.chunk :].flatten().bool()
            self.slots = torch.nonzero_static(valid, size=sum(self.lengths))[:, 0]
            if self.tokens is not None:
                self.tokens = (valid.cumsum(0) - 1)[self.tokens]
            arranged = layout.is_packed
        drops = (stage.drops(self.segments) for stage in config.stages.values())
        self.rearranges = arranged and any(drops)
        self.origin = self.slots

    def packed(self, t: Tensor) -> Tensor:
        """[b, s, D] as the layers have it → [tokens, D]; b may be 1 for all samples alike."""
        if not self.changed and t.shape[0] != self.rows:
            t = t.expand(self.rows, *t.shape[1:])
        t = t.reshape(-1, t.shape[-1])
        return t if self.slots is None else t[self.slots]

    def enter(
        self, number: int, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """What decoder layer `number` gets: hidden states [b, s, D] and keyword arguments.

        Gradient checkpointing runs a layer again in backward (before transformers 5.23 with its
        hooks); the second run repeats what the first decided.
        """
        if 0 < number <= len(self._between):
            hidden = self._add(number, hidden)
        if number in self._ran:
            index, given = self._ran[number]
            return self._take(index, hidden)[0], {**kwargs, **given}
        index, stage = None, self.config.stages.get(number)
        kwargs = {**kwargs, **self.given}
        if stage is not None:
            self.cache = names.handed_cache(kwargs, module)  # the text model may have just made it
        if self.is_step:
            if kwargs["position_embeddings"][0].shape[1] != hidden.shape[1]:
                self.handed.check(module, hidden, kwargs, self.batch, 1)  # which refuses it
            if stage is not None:
                self._step(stage, hidden, kwargs)
        else:
            self.handed.check(module, hidden, kwargs, *self._shape())
            if stage is not None:
                self.handed.stages.append(number)
                hidden, index = self._prune(stage, module, hidden, kwargs)
            after = self.config.stages.get(number + 1)
            if after is not None and after.score_layer == number:
                self._score(after, module, hidden, kwargs["position_embeddings"])
        given = self.given
        if given and self.parts.attends[number] != number:
            kwargs |= (given := {**given, "attention_mask": self._present})
        if self.every_layer and may_run_again(module):
            self._ran[number] = (index, given)
        return hidden, kwargs

    def add_between(self, where: Tensor, features: Sequence[Tensor]) -> None:
        """Add `features` [visual tokens, D] behind layer 0, 1, … to those that are still there, as
        DeepStack does (arXiv 2406.04334). where: bool [B, S], the tokens that they are for."""
        self._between, self._row = features, where.flatten().cumsum(0) - 1

    def _add(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states that enter a layer, with the features that go in before it."""
        assert self.tokens is not None
        if layer not in self._added:
            first = self.tokens if self.origin is None else self.origin[self.tokens]
            place = self.tokens if self.slots is None else self.slots[self.tokens]
            self._added[layer] = place, self._row[first]
        place, row = self._added[layer]
        flat = hidden.reshape(-1, hidden.shape[-1])
        return flat.index_add(0, place, self._between[layer - 1].to(flat)[row]).view(hidden.shape)

    def _shape(self) -> tuple[int, int]:
        """Samples and tokens of the running tensors."""
        if not self.changed:
            return self.rows, self.chunk
        return (1, sum(self.lengths)) if self.flat else (self.batch, max(self.lengths))

    def _step(self, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """A decoding step reaches a stage: its layers hold tokens of their own."""
        state = state_of(self.cache)
        if self.cache is not None and state is not None and stage.layer in state.stages:
            entry = self.layout.step(self._seen(stage), stage.layer, hidden, self.cache)
            self._hand_out(stage, hidden, list(kwargs["position_embeddings"]), entry, kwargs)

    def _prune(
        self, stage: Stage, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """A prefill reaches a stage; returns hidden states and where they were (None: all)."""
        rotary, index = list(kwargs["position_embeddings"]), None
        if stage.score_layer == stage.layer:
            self._score(stage, module, hidden, rotary)
        source = self._select(stage, hidden) if self.segments else None
        state = state_of(self.cache)
        begun = self.changed or self.rearranges or (state and stage.layer in state.stages)
        if source is None and not begun:
            return hidden, None  # nothing dropped so far means bit identity
        flat, self.flat = self.flat, self.layout.is_flat(self._seen(stage), stage.layer, self.cache)
        if source is not None or not self.changed:
            source = self.slots if source is None else source
            if not self.changed:
                rotary = [t.expand(self.rows, *t.shape[1:]) for t in rotary]
            index, self.slots = self.layout.place(self.lengths, source, hidden.device)
            self.changed = True
            hidden, *rotary = self._take(index, hidden, *rotary)
        elif flat != self.flat:
            hidden, *rotary = self._take(None, hidden, *rotary)
        entry = self.layout.enter(self._seen(stage), stage, hidden, self.cache)
        if self.cache is not None and entry.cached is not None:
            state = adopt(self.cache, self.layout.is_packed, self.config, self.batch)
            state.stages[stage.layer] = entry.cached
            state.gap = state.gap if entry.gap is None else entry.gap
        self._hand_out(stage, hidden, rotary, entry, kwargs)
        return hidden, index

    def _seen(self, stage: Stage) -> Chunk:
        """What a layout needs to know of this forward."""
        state, past = state_of(self.cache), self.visual.past if self.visual else None
        cached = state.stages.get(stage.layer) if state else None
        tokens = self.lengths, self.samples, self.slots
        return Chunk(self.batch, self.chunk, *tokens, self.mask, past, cached)

    def _take(self, index: Tensor | None, *tensors: Tensor) -> list[Tensor]:
        """Places `index` of running tensors [b, s, D] in one launch, in the shape of the layout."""
        flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
        if index is not None:
            flat = list(gather_unchecked(index, flat, self.kernels))
        samples = 1 if self.flat else self.batch
        return [t.view(samples, -1, t.shape[-1]) for t in flat]

    def _hand_out(
        self, stage: Stage, hidden: Tensor, rotary: list[Tensor], entry: Entry, kwargs: Kwargs
    ) -> None:
        """Rotary rows and mask or metadata, for the layers from this stage on."""
        if self.config.positions == "renumber":
            rotary = self._renumber(stage, hidden, rotary)
        if not self.every_layer:
            self.span = entry
            kwargs["position_embeddings"][:] = rotary  # every layer holds this list
            if not self.is_step:
                self.handed.expect_attention(self.parts.layers[stage.layer : stage.until])
            return
        # No positions: FlashAttention would read gaps as packed sequences.
        self._present = entry.present
        self.given = {"attention_mask": entry.mask, "position_ids": None}
        self.given["position_embeddings"] = tuple(rotary)
        self.given |= {name: None for name in FLASH_ARGUMENTS if name in kwargs}
        kwargs.update(self.given)

    def _renumber(self, stage: Stage, hidden: Tensor, rotary: list[Tensor]) -> list[Tensor]:
        """Phases of positions 0, 1, … in each sample that has lost tokens; others keep theirs."""
        state, seen, cache = state_of(self.cache), self._seen(stage), self.cache
        if self.tokens is None and state is not None:  # behind what was pruned
            moved = state.moved[stage.layer]
        else:
            losers, cache = {s.sample for s in self.segments if s.left < s.original}, None
            moved = to_device([b in losers for b in range(self.batch)], hidden.device).bool()
        positions = self.layout.positions(seen, stage.layer, hidden, cache)
        if state is not None:
            state.moved[stage.layer] = moved
        axes = self.parts.family.position_axes
        fresh = self.parts.rotary(hidden, positions.expand(*axes, *positions.shape))
        moved_tokens = self.layout.per_token(seen, moved, positions)[..., None]
        return [torch.where(moved_tokens, n, old) for n, old in zip(fresh, rotary, strict=True)]

    def _select(self, stage: Stage, hidden: Tensor) -> Tensor | None:
        """Places in the running tensor of the tokens that stay, int64; None if all do."""
        if not stage.drops(self.segments):
            return None
        assert self.tokens is not None
        state, segments = state_of(self.cache), stage.budgeted(self.segments)
        samples = self.samples or Ragged.from_lengths(self.lengths, hidden.device)
        given = self.packed(hidden.detach()), self.tokens, samples, segments
        images, places = state.images if state else None, (self.slots, self.origin)
        after = self.selector.select(stage, *given, images, places)
        self.tokens, self.samples, self.segments = after.visual, after.samples, after.segments
        self.lengths = list(after.samples.lengths)
        self.counts.append((stage.layer, self._visual_tokens()))
        if self.config.record:
            kept = after.kept if self.origin is None else self.origin[after.kept]
            self.kept[stage.layer] = kept, self.counts[-1][1]
        source, self.origin = after.places
        return source

    def _score(
        self, stage: Stage, module: nn.Module, hidden: Tensor, rotary: Sequence[Tensor]
    ) -> None:
        """Score for a stage that will drop tokens, in the layer it scores with: that is about to
        run, so FSDP has gathered its weights. Processes gather together, so there a stage may also
        be one that drops none."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.segments and (together or stage.drops(self.segments)):
            tokens = [self.packed(t.detach()) for t in (hidden, *rotary)]
            self.selector.score(stage, module, tokens, self.lengths)

    def finish(self, hidden: Tensor) -> Tensor:
        """Put the last hidden states [b, s, D] back to their places in [B, S, D], the rest 0."""
        if self.is_step:
            return hidden
        self.handed.check_all(self.parts.text, self.config.stages)
        self._remember(hidden.device)
        if not self.changed:
            return hidden
        tokens = self.packed(hidden)
        if self.origin is not None:
            out = tokens.new_zeros(self.rows * self.chunk, tokens.shape[-1])
            tokens = out.index_copy_(0, self.origin, tokens)
        return tokens.view(self.rows, self.chunk, -1)

    def report(self) -> Report:
        """What this prefill did."""
        return Report.of(
            plan=self.config.plan,
            counts=self.counts,
            num_layers=len(self.parts.layers),
            images=sum(self.visual.images) if self.visual else 0,
            path="packed" if self.layout.is_packed else "padded",
            path_reason=self.reason,
            select_ms=self.selector.select_ms,
            kept=self.kept,
            chunk=self.chunk,
        )

    def _remember(self, device: torch.device) -> None:
        """Note on the cache which plan it goes on by, although that may have dropped nothing, which
        pictures it has seen, and how far back it can be cropped."""
        visual, state, free = self.visual, state_of(self.cache), []
        assert visual is not None
        if visual.tokens is not None and self.cache is not None:
            state = adopt(self.cache, self.layout.is_packed, self.config, self.batch)
        if state is None or not (state.stages or "image_hash" in self.config.needs):
            return
        if visual.tokens is not None and visual.segments:
            images = to_device(visual.images, device)
            state.images = images if state.images is None else state.images + images
            free.append(self.chunk - 1 - (visual.tokens % self.chunk).amax())
        if self.mask is not None and sum(visual.lengths) < self.batch * self.chunk:
            free.append(self.mask[:, -self.chunk :].flip(1).long().cumprod(1).sum(1).amin())
        if free:
            assert self.cache is not None
            state.free, state.end = torch.stack(free).amin(), self.cache.get_seq_length()

    def _visual_tokens(self) -> list[int]:
        out = [0] * self.batch
        for s in self.segments:
            out[s.sample] += s.left
        return out


def may_run_again(layer: nn.Module) -> bool:
    """Whether checkpointing may run a layer again in backward. Without gradients it may in training
    mode: a re-entrant checkpoint runs its first pass so."""
    return layer.training or torch.is_grad_enabled()
