"""Answers of a model under one plan, and what they cost."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch

from vtfast.flops import multiply_adds
from vtfast.patching import patch
from vtfast.plan import Plan
from vtfast.runtime.names import returned_cache


def answers(
    model: Any,
    processor: Any,
    how: Mapping[str, Any],
    max_new_tokens: int,
    inputs: Mapping[str, Any],
    plan: Plan | None,
) -> list[dict[str, Any]]:
    """Answer every question of a batch greedily, under a plan or (None) unpruned.

    how: further arguments of `vtfast.patch`. Returns a dict for each question: what was `said`, the
    `visual` and `text` tokens of the prompt, visual `tokens` on average over layers, `flops`
    (multiply-adds of the prefill), `seconds` of the batch, `kv_bytes` when it ended.
    """
    with nullcontext() if plan is None else patch(model, plan, **how) as handle:
        _wait(model)
        start = perf_counter()
        out = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )
        _wait(model)
        seconds = perf_counter() - start
        report = None if handle is None else handle.report
    said = processor.batch_decode(
        out.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    layers = returned_cache(out).layers
    kv_bytes = cache_bytes(layers)
    visual = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    lengths = inputs["attention_mask"].sum(1).tolist()
    runs = []
    for row, (length, n) in enumerate(zip(lengths, visual, strict=True)):
        tokens = (n,) * len(layers) if report is None else report.tokens[row]
        runs.append(
            {
                "said": said[row],
                "visual": n,
                "text": length - n,
                "tokens": sum(tokens) / len(layers),
                "flops": multiply_adds(model.config, [length - n + t for t in tokens]),
                "seconds": seconds,
                "kv_bytes": kv_bytes / len(lengths),
            }
        )
    return runs


def cache_bytes(layers: Iterable[Any]) -> int:
    """Bytes that the layers of a cache hold: keys and values, or the states of recurrent layers."""
    held: list[Any] = []
    for layer in layers:
        if hasattr(layer, "keys"):
            held += [layer.keys, layer.values]
        else:
            held += [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return sum(t.nbytes for t in held if t is not None)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
