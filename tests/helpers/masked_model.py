"""An unpatched model with some tokens masked out: it gives what `generate` must return.

Dropped columns stay in the sequence; from the layer that drops them on, a mask hides them from all
others. Nothing is cached, so every way to decode (beams, samples, …) is transformers' own, on the
oracle's logits.
"""

from contextlib import contextmanager

import torch
from cache_name import CACHE
from model_oracle import additive, recurrent
from tiny_parts import text_of


@contextmanager
def hidden(model, gone):
    """Within the block, run `model.generate(..., use_cache=False)` of this unpatched model.

    `gone`: layer -> columns every sample has lost from this layer's input on; copies that
    `generate` makes of a sample (beams, return sequences) lose the same.
    """
    text = text_of(model)
    seen = {}

    def take_mask(module, args, kwargs):
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        assert kwargs.get(CACHE) is None, "pass use_cache=False"
        seen["keys"] = torch.ones(embeds.shape[:2]) if mask is None else mask
        seen["keys"] = seen["keys"].bool().clone()

    def hide(layer, args, kwargs, number):
        keys = seen["keys"]
        rows = gone.get(number, ())
        for row, columns in enumerate(rows):
            copies = len(keys) // len(rows)
            keys[row * copies : (row + 1) * copies, columns] = False
        return args, {**kwargs, "attention_mask": additive(keys, args[0].dtype)}

    def of_those_there(whole):
        """The forward of a recurrent layer, which knows no masks."""

        def forward(states, attention_mask=None, **given):
            return recurrent(whole, states, seen["keys"], **given)

        return forward

    hooks = [text.register_forward_pre_hook(take_mask, with_kwargs=True)]
    for i, layer in enumerate(text.layers):
        hooks.append(
            layer.register_forward_pre_hook(
                lambda module, args, kwargs, i=i: hide(module, args, kwargs, i), with_kwargs=True
            )
        )
        if not hasattr(layer, "self_attn"):
            layer.forward = of_those_there(layer.forward)
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for layer in text.layers:
            vars(layer).pop("forward", None)
