"""The same model run natively on sequences as short as a plan makes them: the reference of pruning.

Saved multiply-adds are not saved time, so every pruned prefill is compared with this ideal: the
model, unpatched, layer by layer on shorter sequences. It selects nothing and takes the first visual
tokens, padded on the left as transformers wants it.
"""

import copy
from typing import Any

import torch
from tiny_parts import text_of
from torch import Tensor, nn
from transformers import DynamicCache

from vtfast import Plan
from vtfast.runtime.names import cache_argument


class _Stop(Exception):
    """The language model has been reached."""


def text_inputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the language model is called with for these inputs: embeddings, positions, a mask."""
    seen: dict[str, Any] = {}

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _Stop

    hook = text_of(model).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Stop:
        return seen
    finally:
        hook.remove()
    raise RuntimeError("the model never called its language model")


class NativeRun:
    """The language model run by itself on sequences as short as a plan makes them.

    Args:
        model: unpatched.
        inputs: of the model, left-padded, with `position_ids`, one picture a sample.
        plan: how many visual tokens each layer sees of every picture.
        image: id of the placeholder.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], plan: Plan, image: int) -> None:
        self.model, self.embed = model, model.get_input_embeddings()
        called = text_inputs(model, inputs)
        self.ids, self.image, positions = inputs["input_ids"], image, called["position_ids"]
        visual, valid = self.ids == image, inputs["attention_mask"].bool()
        number, layers = visual.cumsum(1), text_of(model).layers
        counts = [plan.tokens_per_layer(n, len(layers)) for n in visual.sum(1).tolist()]
        per_layer = list(zip(*counts, strict=True))
        starts = [i for i, now in enumerate(per_layer) if i == 0 or now != per_layer[i - 1]]
        self.spans = []  # of layers, from one stage to the next
        before: Tensor | None = None  # bool [B, S]: columns of the span before
        for start, until in zip(starts, [*starts[1:], len(layers)], strict=True):
            kept = number <= torch.tensor(per_layer[start], device=number.device)[:, None]
            now = valid & (~visual | kept)
            if before is None:
                self.features, before = called["inputs_embeds"][now & visual], now
            self.spans.append(self._span(start, until, now, before))
            before = now
        for span in self.spans:
            columns = span["columns"].expand(*positions.shape[:-2], -1, -1)
            whole = positions.expand(*positions.shape[:-2], len(self.ids), -1)
            span["position_ids"] = whole.gather(-1, columns)

    def _span(self, start: int, until: int, now: Tensor, before: Tensor) -> dict[str, Any]:
        """Layers start … until, the columns they see, and where these were in the span before."""
        text = text_of(self.model)
        part = copy.copy(text)
        part._modules = dict(text._modules)
        part.layers = text.layers[start:until]
        if until < len(text.layers):
            part.norm = nn.Identity()
        columns = now.long().sort(dim=1, stable=True).indices[:, -int(now.sum(1).max()) :]
        mask = now.gather(1, columns).long()  # left-padded
        place = before.cumsum(1) - 1  # of a column among those of the span before
        place = place + (before.sum(1).max() - before.sum(1))[:, None]
        source = place.gather(1, columns).clamp(min=0)[..., None]
        mask = None if bool(mask.all()) else mask
        return {"start": start, "part": part, "columns": columns, "source": source, "mask": mask}

    def prefill(self) -> tuple[Tensor, list[DynamicCache]]:
        """Logits of the last token [B, V], and the KV cache of every span of layers."""
        first, caches = self.spans[0], []
        ids = self.ids.gather(1, first["columns"])
        visual = ids == self.image
        if first["mask"] is not None:
            visual = visual & first["mask"].bool()
        hidden = self.embed(ids).masked_scatter(visual[..., None], self.features)
        for span in self.spans:
            if span is not first:
                hidden = hidden.gather(1, span["source"].expand(-1, -1, hidden.shape[-1]))
            caches.append(_CacheFrom(span["start"]))
            hidden = self._run(span, hidden, span["mask"], span["position_ids"], caches[-1])
        return self.model.lm_head(hidden[:, -1]), caches

    def step(self, caches: list[DynamicCache], ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, V] after one more token: ids [B, 1] at positions [..., B, 1]."""
        hidden = self.embed(ids)
        for span, cache in zip(self.spans, caches, strict=True):
            mask = span["mask"]
            if mask is not None:
                new = cache.get_seq_length() + 1 - mask.shape[1]
                mask = nn.functional.pad(mask, (0, new), value=1)
            hidden = self._run(span, hidden, mask, positions, cache)
        return self.model.lm_head(hidden[:, -1])

    def _run(self, span: dict, hidden: Tensor, mask: Tensor | None, positions: Tensor, cache: Any):
        call = {"attention_mask": mask, "position_ids": positions, cache_argument(): cache}
        return span["part"](inputs_embeds=hidden, use_cache=True, **call).last_hidden_state


class _CacheFrom(DynamicCache):
    """A cache for the layers from `start` on: the text model asks layer 0 about their lengths."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(max(layer_idx, self.start))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length, max(layer_idx, self.start))
