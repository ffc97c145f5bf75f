"""What a pruned model must compute: the whole sequence, with the dropped tokens masked out.

Nothing is removed, except before recurrent layers, which know no masks, and nothing of the pruning
runtime takes part: the decoder layers of a tiny model are called one by one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vtfast.runtime.model import Parts
from vtfast.runtime.names import DEEPSTACK

TOLERANCE = 1e-3  # of logits of size 10; rounding gives 1e-5, a token too many or too few 0.1

Gone = Mapping[int, Tensor]  # layer -> bool [B, prompt], tokens lost at its input


class MaskedSequence:
    """A prompt and the tokens that follow it, at full length.

    Attributes:
        model: a tiny unpatched model; `parts` are its modules.
        prompt: number of columns of the prompt.
    """

    def __init__(self, model: Any, parts: Parts, whole: dict[str, Tensor], prompt: int) -> None:
        """Record what enters layer 0 in an unpruned `generate` on `whole`, prompt and new tokens.

        Raises ValueError if layers called one by one do not give that model's logits.
        """
        self.model, self.parts, self.prompt = model, parts, prompt
        self.valid = whole["attention_mask"].bool()

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.embedded, self.rotary = args[0], tuple(kwargs["position_embeddings"])

        def note_deepstack(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.visual, self.between = (kwargs.get(name) for name in DEEPSTACK)

        hooks = [
            parts.layers[0].register_forward_pre_hook(note, with_kwargs=True),
            parts.text.register_forward_pre_hook(note_deepstack, with_kwargs=True),
        ]
        try:
            unpruned = generate(model, whole, 1, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        if not (self.logits({})[:, -1] - unpruned.logits[0]).abs().max() <= TOLERANCE:
            raise ValueError("decoder layers called one by one differ from the whole model")

    def scores(self, layer: int, gone: Gone) -> Tensor:
        """[B, prompt]: attention of the prompt's last token at this layer, mean over heads."""
        weights: list[Tensor] = []
        block: Any = self.parts.layers[layer]
        hook = block.self_attn.register_forward_hook(lambda *call: weights.append(call[2][1]))
        text: Any = self.parts.text
        before = text.config._attn_implementation
        text.set_attn_implementation("eager")
        try:
            self._entering(layer + 1, gone)
        finally:
            hook.remove()
            text.set_attn_implementation(before)
        return weights[0].mean(1)[:, self.prompt - 1, : self.prompt]

    def logits(self, gone: Gone) -> Tensor:
        """[B, T, vocabulary], from the prompt's last token on."""
        hidden = self._entering(len(self.parts.layers), gone)[:, self.prompt - 1 :]
        return self.model.get_output_embeddings()(self.parts.norm(hidden))

    def _run(self, block: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
        given = {"position_ids": None, "position_embeddings": self.rotary}
        out: Tensor = block(hidden, attention_mask=mask, **given)
        return out

    def _entering(self, layer: int, gone: Gone) -> Tensor:
        """What enters a layer, [B, n, D]: nothing is removed, dropped tokens are masked out."""
        hidden, seen = self.embedded, self.valid.clone()
        n = hidden.shape[1]
        lower = torch.ones(n, n, dtype=torch.bool).tril()
        for number, block in enumerate(self.parts.layers[:layer]):
            if number in gone:
                seen[:, : self.prompt] &= ~gone[number]
            visible = (seen[:, None] & lower) | torch.eye(n, dtype=torch.bool)
            mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo().min)[:, None]
            if self.parts.attends[number] == number:
                hidden = self._run(block, hidden, mask)
            else:  # a recurrent layer is shown just the tokens that are there
                hidden = hidden.clone()
                for row, there in zip(hidden, seen, strict=True):
                    row[there] = self._run(block, row[None, there], None)[0]
            if self.between is not None and number < len(self.between):
                where = self.visual.flatten().nonzero()[:, 0]  # type: ignore[union-attr]
                flat = hidden.flatten(0, 1).index_add(0, where, self.between[number])
                hidden = flat.view(hidden.shape)
        return hidden


def generate(model: Any, inputs: dict[str, Tensor], new: int, **how: Any) -> Any:
    """`new` greedy tokens and their logits; other processes of a distributed job take no part."""
    return model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=new,
        output_logits=True,
        return_dict_in_generate=True,
        synced_gpus=False,
        **how,
    )
