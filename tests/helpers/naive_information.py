"""A slow reference for the information score, from its definition: one forward for every unit.

Each sample runs alone, unpadded. The full sequence runs up to a layer, removed tokens are taken out
of the hidden states, of the rotary phases and of what is added between layers, and the rest runs to
the end under a plain causal mask. Shared with transformers: the decoder layers, norms and head, the
rotary module, the positions of a multimodal prompt, and the image features. Shared with vtfast:
nothing.
"""

from collections.abc import Sequence

import torch
from model_oracle import Oracle, additive
from tiny_models import visual_columns
from tiny_parts import Family, Sample, text_of
from torch import Tensor


class Naive:
    """One sample followed by its answer, on an unpatched model."""

    @torch.no_grad()
    def __init__(self, family: Family, model, sample: Sample, answer: Sequence[int]) -> None:
        self.model, self.text, self.answer = model, text_of(model), list(answer)
        self.prompt = len(sample.ids)
        whole = Sample(sample.ids + self.answer[:-1], sample.pictures)
        inputs = family.batch([whole])
        oracle = Oracle(model, inputs)
        self.visual = visual_columns(inputs)[0].tolist()
        self.start, self.between = oracle.embeddings, oracle.between
        positions = oracle.positions
        self.rotary = self.text.rotary_emb(
            self.start, positions if len(positions) > 1 else positions[0]
        )
        self.length = self.start.shape[1]

    @torch.no_grad()
    def p(self, layer: int, kept: Sequence[int]) -> Tensor:
        """p of every answer token when from `layer` on only text and columns `kept` are there."""
        hidden = self.start
        for i in range(layer):
            hidden = self._layer(i, hidden, list(range(self.length)))
        rows = [c for c in range(self.length) if c not in self.visual or c in kept]
        hidden = hidden[:, rows]
        for i in range(layer, len(self.text.layers)):
            hidden = self._layer(i, hidden, rows)
        logits = self.model.lm_head(self.text.norm(hidden[0])).float()
        return torch.stack(
            [
                logits[rows.index(self.prompt - 1 + step)].softmax(0)[token]
                for step, token in enumerate(self.answer)
            ]
        )

    def full(self) -> Tensor:
        """p of every answer token with every visual token there."""
        return self.p(0, self.visual)

    def _layer(self, i: int, hidden: Tensor, rows: list[int]) -> Tensor:
        cos, sin = (t[:, rows] for t in self.rotary)
        mask = additive(torch.ones(1, len(rows), dtype=torch.bool), hidden.dtype)
        block = self.text.layers[i]
        out = block(
            hidden,
            attention_mask=mask if hasattr(block, "self_attn") else None,
            position_ids=None,
            position_embeddings=(cos, sin),
        )
        return out + self.between[i][:, rows] if i in self.between else out
