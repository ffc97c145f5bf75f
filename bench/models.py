"""What the model benches run: prompts for a model, and the same model run natively as short.

Saved multiply-adds are not saved time, so the ideal beside every pruned prefill is the same model,
unpatched, on sequences as short as the plan makes them, layer by layer (`Shorter`). It has no
selection to make and takes the first visual tokens, padded on the left as transformers wants it.
The picture is encoded once, outside of what is timed, for every way alike.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtfast import Plan
from vtfast.runtime.names import cache_argument


class _Stop(Exception):
    """The text model has been reached."""


def text_inputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the language model is called with for these inputs: embeddings, positions, a mask."""
    seen: dict[str, Any] = {}

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _Stop

    hook = model.model.language_model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Stop:
        return seen
    finally:
        hook.remove()
    raise RuntimeError("the model never called its language model")


def encode(model: Any, inputs: dict[str, Tensor]) -> Any:
    """The features of the pictures, as the vision tower and what follows it make them."""
    names = ("pixel_values", "image_grid_thw")
    given = {name: inputs[name] for name in names if name in inputs}
    with torch.no_grad():
        return model.model.get_image_features(**given)


@contextmanager
def encoded_once(model: Any, inputs: dict[str, Tensor], features: Any = None) -> Iterator[None]:
    """Within the block the model's pictures are encoded already: timing begins after that.

    `features` is what the tower would return; None lets it.
    """
    features = encode(model, inputs) if features is None else features
    model.model.get_image_features = lambda *args, **kwargs: features
    try:
        yield
    finally:
        del model.model.get_image_features


def with_positions(
    model: Any, inputs: dict[str, Tensor], features: Any = None
) -> dict[str, Tensor]:
    """The inputs with the positions of the full prompt, so that no way spends time on them."""
    with encoded_once(model, inputs, features):
        return {**inputs, "position_ids": text_inputs(model, inputs)["position_ids"]}


class Shorter:
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
        self.ids, self.image = inputs["input_ids"], image
        visual, valid = self.ids == image, inputs["attention_mask"].bool()
        number, sizes = visual.cumsum(1), visual.sum(1).tolist()
        layers = model.model.language_model.layers
        counts = [plan.tokens_per_layer(n, len(layers)) for n in sizes]
        per_layer = list(zip(*counts, strict=True))
        starts = [i for i, now in enumerate(per_layer) if i == 0 or now != per_layer[i - 1]]
        self.runs = []
        before: Tensor | None = None  # bool [B, S]: columns of the run before
        for start, until in zip(starts, [*starts[1:], len(layers)], strict=True):
            kept = number <= torch.tensor(per_layer[start], device=number.device)[:, None]
            now = valid & (~visual | kept)
            if before is None:
                self.features = called["inputs_embeds"][now & visual]
                before = now
            self.runs.append(self._run(start, until, now, before))
            before = now
        positions = called["position_ids"]
        self.positions = [
            positions.expand(*positions.shape[:-2], len(self.ids), -1).gather(
                -1, run["columns"].expand(*positions.shape[:-2], -1, -1)
            )
            for run in self.runs
        ]

    def _run(self, start: int, until: int, now: Tensor, before: Tensor) -> dict[str, Any]:
        """Layers start … until, the columns they see, and where these were in the run before."""
        text = self.model.model.language_model
        part = copy.copy(text)
        part._modules = dict(text._modules)
        part.layers = text.layers[start:until]
        if until < len(text.layers):
            part.norm = nn.Identity()
        columns, mask = _left_padded(now)
        place = before.cumsum(1) - 1  # of a column among those of the run before
        place = place + (before.sum(1).max() - before.sum(1))[:, None]
        return {
            "start": start,
            "part": part,
            "columns": columns,
            "source": place.gather(1, columns).clamp(min=0)[..., None],
            "mask": None if bool(mask.all()) else mask,
        }

    def __call__(self) -> Tensor:
        """Logits of the last token [B, 1, V], as a prefill would compute them."""
        return self.prefill()[0]

    def prefill(self) -> tuple[Tensor, list[DynamicCache]]:
        """Logits of the last token [B, 1, V], and the KV cache of every run of layers."""
        first, caches = self.runs[0], []
        ids = self.ids.gather(1, first["columns"])
        hidden = self.embed(ids)
        visual = ids == self.image
        if first["mask"] is not None:
            visual = visual & first["mask"].bool()
        hidden = hidden.masked_scatter(visual[..., None], self.features)
        for run, positions in zip(self.runs, self.positions, strict=True):
            if run is not first:
                hidden = hidden.gather(1, run["source"].expand(-1, -1, hidden.shape[-1]))
            caches.append(_From(run["start"]))
            hidden = run["part"](
                inputs_embeds=hidden,
                attention_mask=run["mask"],
                position_ids=positions,
                **{cache_argument(): caches[-1]},
                use_cache=True,
            ).last_hidden_state
        return self.model.lm_head(hidden[:, -1:]), caches

    def step(self, caches: list[DynamicCache], ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, 1, V] after one more token: ids [B, 1] at positions [..., B, 1]."""
        hidden = self.embed(ids)
        for run, cache in zip(self.runs, caches, strict=True):
            mask = run["mask"]
            if mask is not None:
                new = cache.get_seq_length() + 1 - mask.shape[1]
                mask = nn.functional.pad(mask, (0, new), value=1)
            hidden = run["part"](
                inputs_embeds=hidden,
                attention_mask=mask,
                position_ids=positions,
                **{cache_argument(): cache},
                use_cache=True,
            ).last_hidden_state
        return self.model.lm_head(hidden)


class _From(DynamicCache):
    """A cache for the layers from `start` on: the text model asks layer 0 about their lengths."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return super().get_seq_length(max(layer_idx, self.start))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length, max(layer_idx, self.start))


def _left_padded(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Columns kept of each row, right-aligned, and the mask that says which are real."""
    longest = int(keep.sum(1).max())
    order = keep.long().sort(dim=1, stable=True).indices[:, -longest:]
    return order, keep.gather(1, order).long()


def prompts(
    texts: Sequence[int], picture: Tensor, image: int, vocabulary: int, seed: int = 0
) -> dict[str, Tensor]:
    """Samples of so many text tokens around one picture each, padded on the left.

    picture: [tokens] placeholders and what belongs around them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in texts:
        words = torch.randint(image + 1, vocabulary, (length,), generator=generator)
        rows.append(torch.cat((words[:8], picture, words[8:])))
    longest = max(map(len, rows))
    pad = nn.functional.pad
    ids = torch.stack([pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
