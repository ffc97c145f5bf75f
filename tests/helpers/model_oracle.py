"""The oracle of a pruned model, computed slowly: full length, dropped tokens masked, no cache.

Nothing is removed here. Every layer sees the whole sequence through a 4-D mask that hides the
dropped tokens from all others, and each new token is the arg max of a forward over everything so
far. Shared with transformers: the decoder layers, norms and head, the rotary module, the positions
of a multimodal prompt, and the image features. Shared with vtfast: nothing. The model must be an
unpatched one; with attention "eager" it also tells what a token attends to.
"""

from collections.abc import Mapping, Sequence

import torch
from cache_name import CACHE
from tiny_parts import encoded, text_of
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

Gone = Mapping[
    int, Sequence[Tensor]
]  # layer -> columns each sample has lost from this layer's input on


class Oracle:
    """One batch on one unpatched model."""

    @torch.no_grad()
    def __init__(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], *, renumber: bool = False
    ) -> None:
        self.model, self.text = model, text_of(model)
        self.renumber = renumber  # a sample that lost tokens counts the others from 0
        self.ids, self.valid = inputs["input_ids"], inputs["attention_mask"].bool()
        self.embeddings = self._embed(inputs)
        self.positions = self._positions(inputs)  # [axes, batch, length]

    @torch.no_grad()
    def hidden(self, layer: int, gone: Gone, new: Tensor | None = None) -> Tensor:
        """Hidden states entering `layer`, [batch, length + new, D]."""
        return self._run(layer, gone, new)[0]

    def put_out(self, layer: int, gone: Gone) -> Tensor:
        """What `layer` puts out, [batch, length, D], before a model adds features to it."""
        return self.hidden(layer + 1, gone) - self.between.get(layer, 0)

    @torch.no_grad()
    def logits(self, gone: Gone, new: Tensor | None = None) -> Tensor:
        """Logits of the prompt and of the tokens `new` [batch, T] that follow it."""
        hidden, *_ = self._run(len(self.text.layers), gone, new)
        return self.model.lm_head(self.text.norm(hidden))

    def greedy(self, gone: Gone, steps: int) -> Tensor:
        """The next `steps` tokens of every sample, [batch, steps].

        Refuses inputs on which rounding could decide a token.
        """
        new = torch.zeros(len(self.valid), 0, dtype=torch.long)
        for _ in range(steps):
            best = self.logits(gone, new)[:, -1].topk(2)
            margin = (best.values[:, 0] - best.values[:, 1]).min().item()
            assert margin > 2e-3, f"two tokens are {margin:.1e} apart; give this test another seed"
            new = torch.cat([new, best.indices[:, :1]], 1)
        return new

    @torch.no_grad()
    def attention(self, layer: int, gone: Gone, new: Tensor | None = None) -> Tensor:
        """Attention of every token to every other at `layer`, [batch, heads, n, n]."""
        hidden, mask, rotary = self._run(layer, gone, new)
        block = self.text.layers[layer]
        _, weights = block.self_attn(
            block.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask
        )
        return weights

    def text_columns(self, row: int) -> list[int]:
        """Real columns of a sample outside any picture."""
        config = self.model.config
        placeholders = [config.image_token_id, getattr(config, "video_token_id", -1)]
        visual = torch.isin(self.ids[row], torch.tensor(placeholders))
        return (self.valid[row] & ~visual).nonzero()[:, 0].tolist()

    @torch.no_grad()
    def keys(self, layer: int, gone: Gone) -> Tensor:
        """Keys that `layer` caches, all heads of a token side by side, [batch, n, heads * d]."""
        hidden, mask, rotary = self._run(layer, gone, None)
        cache = DynamicCache()
        self.text.layers[layer](
            hidden, attention_mask=mask, **{CACHE: cache}, position_embeddings=rotary
        )
        return cache.layers[layer].keys.transpose(1, 2).flatten(2)

    def attention_row(self, layer: int, gone: Gone) -> Tensor:
        """Attention of each sample's last token to every column at `layer`, mean over heads."""
        return self.attention(layer, gone)[:, :, -1].mean(1)

    def survivors(self, gone: Gone) -> Tensor:
        """Bool [batch, length]: real columns that no layer has lost."""
        alive = self.valid.clone()
        for rows in gone.values():
            for row, columns in zip(alive, rows, strict=True):
                row[columns] = False
        return alive

    def _embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        multimodal, config = self.model.model, self.model.config
        embeddings = multimodal.get_input_embeddings()(inputs["input_ids"])
        found, self.between = [], {}  # layer -> [batch, length, D] that is added behind it
        if "pixel_values" in inputs:
            found.append((config.image_token_id, encoded(self.model, "image", inputs)))
        if "pixel_values_videos" in inputs:
            token = config.video_token_id
            if not (inputs["input_ids"] == token).any():  # GLM
                token = config.image_token_id
            found.append((token, encoded(self.model, "video", inputs)))
        for token, features in found:
            placed = inputs["input_ids"] == token
            parts = features.pooler_output
            embeddings[placed] = torch.cat([part.flatten(0, -2) for part in parts])
            for layer, parts in enumerate(getattr(features, "deepstack_features", ())):
                added = self.between.setdefault(layer, torch.zeros_like(embeddings))
                added[placed] = parts if torch.is_tensor(parts) else torch.cat(list(parts))
        return embeddings

    def _positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if "mm_token_type_ids" not in inputs:
            return (self.valid.cumsum(1) - 1).clamp(min=0)[None]
        names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        given = {name: inputs[name] for name in names if name in inputs}
        return self.model.model.get_rope_index(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], **given
        )[0]

    def positions_after(self, steps: int) -> Tensor:
        """Positions of the prompt and `steps` more: on from its largest, the same on all axes."""
        last = self.positions.masked_fill(~self.valid, -1).amax((0, 2))
        following = last[:, None] + 1 + torch.arange(steps)
        return torch.cat([self.positions, following.expand(len(self.positions), -1, -1)], 2)

    def position_ids(self, start: int, stop: int) -> Tensor:
        """Positions of columns start … stop, new tokens counted on, as a forward takes them."""
        steps = max(0, stop - self.valid.shape[1])
        positions = self.positions_after(steps)[:, :, start:stop]
        return positions if len(positions) > 1 else positions[0]

    def _run(
        self, layer: int, gone: Gone, new: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Hidden states entering `layer`, the mask they meet there, and the rotary rows."""
        hidden, steps = self.embeddings, 0
        if new is not None:
            steps = new.shape[1]
            hidden = torch.cat([hidden, self.model.model.get_input_embeddings()(new)], 1)
        positions = self.positions_after(steps)
        seen = torch.nn.functional.pad(self.valid, (0, steps), value=True)
        for i in range(len(self.text.layers) + 1):
            for b, columns in enumerate(gone.get(i, ())):
                seen[b, columns] = False
                if self.renumber and len(columns):
                    positions[:, b] = (seen[b].cumsum(0) - 1).clamp(min=0)
            rotary = self.text.rotary_emb(hidden, positions if len(positions) > 1 else positions[0])
            mask = additive(seen, hidden.dtype)
            if i == layer:
                return hidden, mask, rotary
            block, given = (
                self.text.layers[i],
                {"position_embeddings": rotary, "position_ids": None},
            )
            if hasattr(block, "self_attn"):
                hidden = block(hidden, attention_mask=mask, **given)
            else:
                hidden = recurrent(block, hidden, seen, **given)
            if i in self.between:
                added = self.between[i].to(hidden)
                hidden = hidden + torch.nn.functional.pad(added, (0, 0, 0, steps))
        raise IndexError(f"layer {layer} of {len(self.text.layers)}")


def recurrent(layer: torch.nn.Module, hidden: Tensor, seen: Tensor, **given: object) -> Tensor:
    """A layer that knows no masks: of every sample it is shown just the tokens that are there.

    seen: bool [batch, n]. The others stay what they are.
    """
    out = hidden.clone()
    for b, there in enumerate(seen.clone()):  # which autograd keeps
        out[b, there] = layer(hidden[b : b + 1, there], attention_mask=None, **given)[0]
    return out


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[batch, 1, n, n]: 0 where a query sees a key, as it always sees itself; else the lowest."""
    n = seen.shape[1]
    visible = seen[:, None] & torch.ones(n, n, dtype=torch.bool).tril() | torch.eye(
        n, dtype=torch.bool
    )
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(visible, torch.zeros((), dtype=dtype), lowest)[:, None]
