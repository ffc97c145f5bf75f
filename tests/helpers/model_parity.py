"""The check of whole models before they are timed: native and patched runs must agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from report import PACKED, PADDED
from tiny_parts import text_of
from torch import Tensor, nn

import vtfast
from vtfast import Plan, Prune

if TYPE_CHECKING:
    from prefills import Prompted, Variant

# Most distance ‖a - b‖ / ‖b‖ of logits, in multiples of what one more rounding of the hidden states
# in every layer causes. In bf16, 32 layers on a CPU, that rounding causes 0.096, eager attention in
# place of SDPA 0.065, one visual token of 72 fewer 0.27, positions one off 0.94.
ROUNDINGS = 2.0


@vtfast.register_method("bench-first", replace=True)
def first_tokens(ctx: Any) -> Tensor:
    """The first tokens of every picture, as the native run takes: then logits must agree."""
    starts = ctx.segments.cu_seqlens[:-1].tolist()
    picks = [torch.arange(s, s + k) for s, k in zip(starts, ctx.keep, strict=True)]
    return torch.cat(picks).to(ctx.features.device)


def disagreements(prompted: "Prompted", plan: Plan) -> dict[str, str]:
    """What is wrong with the answers, by variant; nothing is timed before this is empty.

    With the plan's layers and counts but the first tokens of every picture, both layouts must have
    the logits of the native run, after the prefill and after a token. With the plan itself both
    must run the tokens it says in every layer, and keep the same ones; a stage that reads hidden
    states deeper in the model may decide otherwise where these are not in fp32.
    """
    first = Plan([Prune(s.layer, "bench-first", s.keep) for s in plan.stages])
    native = prompted.native(plan)
    expected = two_logits(native)
    with rounded_once_more(prompted.model):
        allowed = ROUNDINGS * distance(two_logits(native), expected)
    wrong, kept, logits = {}, {}, {}
    sizes = (prompted.inputs["input_ids"] == prompted.image).sum(1).tolist()
    layers = len(text_of(prompted.model).layers)
    tokens = tuple(plan.tokens_per_layer(n, layers) for n in sizes)
    for path in (PADDED, PACKED):
        got = two_logits(prompted.patched(first, path))
        wrong[f"{path}, first tokens"] = apart(got, expected, allowed)
        with vtfast.patch(prompted.model, plan, path=path, record=True) as handle:
            logits[path], _ = prompted.prefill()
        kept[path], ran = handle.report.kept, handle.report.tokens
        wrong[path] = "" if ran == tokens else f"ran {ran}, the plan says {tokens}"
    differing = [layer for layer, picks in kept[PADDED].items()
                 if not all(map(torch.equal, picks, kept[PACKED][layer]))]  # fmt: skip
    if differing:
        deep = [s.layer for s in plan.stages if s.layer and s.method != "random"]
        lossy = next(prompted.model.parameters()).dtype != torch.float32
        if not (lossy and deep and min(differing) >= min(deep)):
            wrong[PACKED] = f"keeps other tokens than padded from layer {min(differing)} on"
    else:
        wrong[PACKED] = wrong[PACKED] or apart([logits[PACKED]], [logits[PADDED]], allowed)
    for name, flash in prompted.flash().items():
        wrong[name] = apart(two_logits(flash), two_logits(prompted.stock()), allowed)
    return {name: why for name, why in wrong.items() if why}


def two_logits(variant: "Variant") -> list[Tensor]:
    """After the prefill and after one more token."""
    with variant.within():
        logits, state = variant.prefill()
        return [logits, variant.step(state, 0)]


@contextmanager
def rounded_once_more(model: Any) -> Iterator[None]:
    """Every layer's input is off by up to a rounding, as another order of sums would leave it."""

    def off(module: nn.Module, args: tuple) -> tuple:
        hidden = args[0]
        by = torch.rand(hidden.shape, generator=generator, device=hidden.device) - 0.5
        by *= torch.finfo(hidden.dtype).eps
        return ((hidden.float() * (1 + by)).to(hidden.dtype), *args[1:])

    generator = torch.Generator(model.device).manual_seed(0)
    hooks = [layer.register_forward_pre_hook(off) for layer in text_of(model).layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """‖got - expected‖ / ‖expected‖, of the sample and the token where it is largest."""
    pairs = [(a.double(), b.double()) for a, b in zip(got, expected, strict=True)]
    return max(((a - b).norm(dim=-1) / b.norm(dim=-1)).amax().item() for a, b in pairs)


def apart(got: list[Tensor], expected: list[Tensor], allowed: float) -> str:
    """Empty if every sample's logits are as near as roundings leave them."""
    off = distance(got, expected)
    within = off <= allowed  # false for NaN
    return "" if within else f"logits are {off:.2g} off, of {allowed:.2g} that roundings explain"
