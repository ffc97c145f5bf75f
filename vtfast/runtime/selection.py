"""Run the methods of a forward and drop what they do not select."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vtfast.kernels._mix64 import mix64
from vtfast.kernels.compact import compact
from vtfast.kernels.ragged import Ragged
from vtfast.methods import Attention, SelectionContext, Sequences
from vtfast.methods.segments import Segment, lengths_after
from vtfast.methods.stage import Stage
from vtfast.report import timed
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.host_read import to_device
from vtfast.runtime.model import Parts
from vtfast.runtime.packed_kv_cache import row_numbers
from vtfast.runtime.visual_tokens import VisualTokens

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shortened:
    """The packed tokens after a stage.

    Attributes:
        kept: int64 [visual tokens after], where the visual ones among them were before.
        visual: int64 [visual tokens after], where they are now.
        samples: which of the tokens form which sample.
        segments: the images, clips, frames or tiles, with what is left of each.
        places: what stays of each of the places that `Selector.select` was given.
    """

    kept: Tensor
    visual: Tensor
    samples: Ragged
    segments: list[Segment]
    places: tuple[Tensor, ...]


class Selector:
    """Shows methods the tokens of one forward, and runs them.

    Attributes:
        select_ms: with `record`, milliseconds that each stage took to score and select, by layer.
    """

    def __init__(self, config: PatchConfig, parts: Parts, visual: VisualTokens | None) -> None:
        self.select_ms: dict[int, float] = {}
        self._config, self._parts, self._visual = config, parts, visual
        self._attention: Attention | None = None  # of the score layer, for the next stage

    def score(
        self, stage: Stage, layer: nn.Module, tokens: Sequence[Tensor], lengths: Sequence[int]
    ) -> None:
        """Note what the score layer of a stage attends with; it is about to run.

        tokens: packed hidden states and rotary rows (cos, sin) that enter the layer. lengths: of
        each sample.
        """
        device = tokens[0].device
        seen, lengths = self._prompts(lengths, device)
        last = Ragged.from_lengths(lengths, device).cu_seqlens[1:].long() - 1
        hidden, cos, sin = (_rows(t, seen) for t in tokens)
        attention = partial(self._parts.family.attention, layer, hidden, cos, sin, last)
        # Dropout in a projection (of LoRA, say) must leave the layer's random numbers alone: a
        # checkpoint draws those again in backward, where nothing is scored.
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices, enabled=layer.training):
            self._attention = self._timed(stage, device, attention)

    def select(
        self,
        stage: Stage,
        hidden: Tensor,
        tokens: Tensor,
        samples: Ragged,
        segments: Sequence[Segment],
        images: Tensor | None,
        places: Sequence[Tensor | None],
    ) -> Shortened:
        """Have a stage's method choose, and drop the other visual tokens; text stays.

        hidden: packed hidden states. tokens: int64 [n], which of them are visual. samples: which
        form which sample. segments: what the stage has budgets for. images: int64 [samples],
        pictures that the cache has seen before, or None. places: where each token is, int64
        [tokens], in one or more ways, in the chunk by the last; None for 0, 1, ….
        """
        device = hidden.device
        keep = tuple(stage.prune.count(s.original, s.left) for s in segments)
        apart = stage.per != "image"
        with torch.no_grad():
            seen, of_prompts = self._prompts(samples.lengths, device)
            visual = tokens if seen is None else torch.searchsorted(seen, tokens)
            # The norm's forward alone: a call would have FSDP gather its weights, and processes
            # with other pictures may call it more or less often.
            norm = self._parts.norm.forward
            owners = tuple(s.sample for s in segments)
            around = Sequences(_rows(hidden, seen), visual, tuple(of_prompts), owners, norm)
            context = SelectionContext(
                layer=stage.layer,
                segments=Ragged.from_lengths([s.left for s in segments], device),
                keep=keep,
                parts=tuple(s.parts for s in segments),
                sequences=around,
                seed=self._config.picks_seed,
                options=stage.prune.options,
                impl=self._config.impl,
                _image_hash=partial(self._image_hash, segments, images, apart, device),
                _attention=self._scored,
                _vision_scores=partial(self._vision_scores, tokens, places[-1]),
                _reads=stage.method.needs,
            )
            chosen = self._timed(stage, device, lambda: stage.method.select(context))
            self._attention = None
            left = [replace(s, left=n) for s, n in zip(segments, keep, strict=True)]
            lengths = lengths_after(samples.lengths, segments, left)
            found = compact(chosen, tokens, samples, lengths, places, impl=context.impl)
            _, kept, now, after, there = found
            return Shortened(kept, now, after, left, there)

    def _prompts(
        self, lengths: Sequence[int], device: torch.device
    ) -> tuple[Tensor | None, Sequence[int]]:
        """Which packed tokens methods see, int64 ascending (None: all), and how many of each
        sample: the prompts, without what follows them."""
        after = self._visual.after_prompt if self._visual else []
        if not any(after):
            return None, lengths
        shorter = [n - behind for n, behind in zip(lengths, after, strict=True)]
        starts = [sum(lengths[:b]) for b in range(len(lengths))]
        return row_numbers(starts, shorter, device), shorter

    def _scored(self) -> Attention:
        assert self._attention is not None
        return self._attention

    def _vision_scores(self, tokens: Tensor, origin: Tensor | None) -> Tensor:
        """fp32 [n], of the visual tokens still there. origin: int64 [tokens], flat positions."""
        visual: Any = self._visual  # with scores: `validation.check_vision_scores`
        scores: Tensor = visual.vision_scores().to(tokens.device)
        first = tokens if origin is None else origin[tokens]
        return scores[torch.searchsorted(visual.tokens, first)]

    def _image_hash(
        self, segments: Sequence[Segment], seen: Tensor | None, apart: bool, device: torch.device
    ) -> Tensor:
        """int64, one for each image or clip, or with `apart` for each of `segments`.

        Made from the pixels. Without pixels it is the number of the picture in its sample, plus the
        number of pictures that the cache has `seen` before, int64 [samples].
        """
        visual = self._visual
        assert visual is not None
        if visual.image_hash is not None:
            hashes = visual.image_hash(self._config.impl).to(device)
        else:
            hashes = to_device([i for n in visual.images for i in range(n)], device)
            if seen is not None:
                samples = [b for b, n in enumerate(visual.images) for _ in range(n)]
                hashes = hashes + seen[to_device(samples, device)]
        if not apart:
            return hashes
        hashes = hashes[to_device([s.image for s in segments], device)]
        return mix64(hashes, to_device([s.number for s in segments], device))

    def _timed(self, stage: Stage, device: torch.device, call: Callable[[], Result]) -> Result:
        """The result of a call; with `record`, its time is added to that of the stage, which waits
        for the device."""
        if not self._config.record:
            return call()
        result, spent = timed(call, device)
        self.select_ms[stage.layer] = self.select_ms.get(stage.layer, 0.0) + spent
        return result


def _rows(t: Tensor, index: Tensor | None) -> Tensor:
    return t if index is None else t[index]
