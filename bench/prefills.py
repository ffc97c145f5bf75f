"""Every way to run a model on the same prompts, and the check that they all say the same.

- unpatched: stock transformers on all tokens, with SDPA, and with FlashAttention-2 where it is;
- native: the same model on sequences as short as the plan makes them (`models.Shorter`);
- padded, packed: patched, in either layout.

In every round each way prefills once and then decodes, in alternating order, so that ratios can be
taken within a round. Pictures are encoded beforehand for all of them alike, and patching is not
timed either.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from models import Shorter
from timing import clock_of, summary
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available

import vtfast
from vtfast import Plan, Prune
from vtfast.runtime.names import cache_argument, returned_cache

UNPATCHED, FLASH, NATIVE, PADDED, PACKED = (
    "unpatched, SDPA", "unpatched, FlashAttention-2", "native", "padded", "packed"
)  # fmt: skip
WAYS = (UNPATCHED, FLASH, NATIVE, PADDED, PACKED)
# Logits may be apart by so many times what rounding hidden states once more in every layer does to
# them. In bf16, 32 layers on a CPU, as ‖a - b‖ / ‖b‖: that is 0.096, eager attention in place of
# SDPA 0.065, one visual token of 72 fewer 0.27, positions one off 0.94.
ROUNDINGS = 2.0


@vtfast.register_method("bench-first")
def first_tokens(ctx: Any) -> Tensor:
    """The first tokens of every picture: what the native run takes, so that logits must agree."""
    starts = ctx.segments.cu_seqlens[:-1].tolist()
    rows = [torch.arange(s, s + k) for s, k in zip(starts, ctx.keep, strict=True)]
    return torch.cat(rows).to(ctx.features.device)


@dataclass(frozen=True)
class Way:
    """`prefill` gives the last token's logits [B, V] and a state, from which `step` goes on.

    within: what must be entered around both.
    """

    within: Callable[[], AbstractContextManager]
    prefill: Callable[[], tuple[Tensor, Any]]
    step: Callable[[Any, int], Tensor]


class Prompted:
    """One model with one batch of prompts, all of it on the device.

    Args:
        model: unpatched, its pictures encoded (`models.encoded_once`).
        inputs: with `attention_mask` and `position_ids`, one picture a sample.
        steps: how many tokens a decoding is timed over.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], steps: int = 1) -> None:
        self.model, self.inputs, self.steps = model, inputs, steps
        self.image = model.config.image_token_id
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        self.called = dict(inputs)
        if mask.all():  # `generate` leaves such a mask out
            del self.called["attention_mask"]
        self.next = []
        for t in range(steps):
            given = {"input_ids": inputs["input_ids"][:, -1:]}
            given["position_ids"] = positions[..., -1:] + 1 + t
            if "attention_mask" in self.called:
                given["attention_mask"] = nn.functional.pad(mask, (0, 1 + t), value=1)
            self.next.append(given)

    def prefill(self) -> tuple[Tensor, Any]:
        out = self.model(**self.called, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], returned_cache(out)

    def step(self, cache: Any, t: int) -> Tensor:
        return self.model(**self.next[t], **{cache_argument(): cache}, use_cache=True).logits[:, -1]

    def stock(self, within: Callable[[], AbstractContextManager] = nullcontext) -> Way:
        return Way(within, self.prefill, self.step)

    def patched(self, plan: Plan, path: str) -> Way:
        return self.stock(lambda: vtfast.patch(self.model, plan, path=path))

    def native(self, plan: Plan) -> Way:
        shorter = Shorter(self.model, self.inputs, plan, self.image)

        def prefill() -> tuple[Tensor, Any]:
            logits, caches = shorter.prefill()
            return logits[:, -1], caches

        def step(caches: Any, t: int) -> Tensor:
            given = self.next[t]
            return shorter.step(caches, given["input_ids"], given["position_ids"])[:, -1]

        return Way(nullcontext, prefill, step)

    def ways(self, plan: Plan) -> dict[str, Way | str]:
        """By the names above; a string says why there is none."""
        flash: Way | str = "not installed"
        if is_flash_attn_2_available():
            flash = self.stock(lambda: attention(self.model, "flash_attention_2"))
        return {
            UNPATCHED: self.stock(),
            FLASH: flash,
            NATIVE: self.native(plan),
            PADDED: self.patched(plan, PADDED),
            PACKED: self.patched(plan, PACKED),
        }


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """The language model's attention implementation, for a while."""
    text = model.model.language_model
    before = text.config._attn_implementation
    text.set_attn_implementation(name)
    try:
        yield
    finally:
        text.set_attn_implementation(before)


def available(ways: dict[str, Way | str]) -> dict[str, Way]:
    return {name: way for name, way in ways.items() if isinstance(way, Way)}


def race(
    ways: dict[str, Way], rounds: int, device: str, steps: int = 0, decoded: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of prefills, and in the first `decoded` rounds of a token decoded after one."""
    clock = clock_of(device)
    taken: dict[str, dict[str, list[float]]] = {name: {"ttft": [], "decode": []} for name in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for name in order:
            way = ways[name]
            state = None
            if device == "cuda":
                gc.collect()  # what is still held would count, and might not fit
            with way.within():
                start = clock()
                _, state = way.prefill()
                first = clock()
                taken[name]["ttft"].append((first - start) * 1e3)
                if number < decoded:
                    for t in range(steps):
                        way.step(state, t)
                    taken[name]["decode"].append((clock() - first) * 1e3 / steps)
    return taken


def ratios(taken: list[float], to: list[float]) -> dict[str, float]:
    """Median and spread of the ratios within the rounds."""
    return summary([a / b for a, b in zip(taken, to, strict=True)])


def disagreements(prompted: Prompted, plan: Plan) -> dict[str, str]:
    """What is wrong with the answers, by way; nothing is timed before this is empty.

    With the plan's layers and counts but the first tokens of every picture, both layouts must have
    the logits of the native run, after the prefill and after a token. With the plan itself both
    must run the tokens it says in every layer, and keep the same ones; a stage that reads hidden
    states deeper in the model may decide otherwise where these are not in fp32.
    """
    stages = [Prune(s.layer, "bench-first", s.keep) for s in plan.stages]
    native = prompted.native(plan)
    expected = _two_logits(native, prompted)
    with rounded_once_more(prompted.model):
        allowed = ROUNDINGS * _off(_two_logits(native, prompted), expected)
    wrong = {}
    for path in (PADDED, PACKED):
        got = _two_logits(prompted.patched(Plan(stages), path), prompted)
        wrong[f"{path}, first tokens"] = _apart(got, expected, allowed)
    kept, logits = {}, {}
    for path in (PADDED, PACKED):
        with vtfast.patch(prompted.model, plan, path=path, record=True) as handle:
            logits[path], _ = prompted.prefill()
        kept[path] = handle.report.kept
        wrong[path] = _other_counts(handle.report, plan, prompted)
    deep = {s.layer for s in plan.stages if s.layer and s.method != "random"}
    differing = [
        layer
        for layer, rows in kept[PADDED].items()
        if not all(map(torch.equal, rows, kept[PACKED][layer]))
    ]
    if differing:
        lossy = next(prompted.model.parameters()).dtype != torch.float32
        if not (lossy and deep and min(differing) >= min(deep)):
            wrong[PACKED] = f"keeps other tokens than padded from layer {min(differing)} on"
    else:
        wrong[PACKED] = wrong[PACKED] or _apart([logits[PACKED]], [logits[PADDED]], allowed)
    if is_flash_attn_2_available():
        stock = _two_logits(prompted.stock(), prompted)
        flash = prompted.stock(lambda: attention(prompted.model, "flash_attention_2"))
        wrong[FLASH] = _apart(_two_logits(flash, prompted), stock, allowed)
    return {name: why for name, why in wrong.items() if why}


def _two_logits(way: Way, prompted: Prompted) -> list[Tensor]:
    """After the prefill and after one more token."""
    with way.within():
        logits, state = way.prefill()
        return [logits, way.step(state, 0)]


@contextmanager
def rounded_once_more(model: Any) -> Iterator[None]:
    """Every layer's input is off by up to a rounding, as another order of sums would leave it."""

    def off(module: nn.Module, args: tuple) -> tuple:
        hidden = args[0]
        by = torch.rand(hidden.shape, generator=generator, device=hidden.device) - 0.5
        by *= torch.finfo(hidden.dtype).eps
        return ((hidden.float() * (1 + by)).to(hidden.dtype), *args[1:])

    generator = torch.Generator(model.device).manual_seed(0)
    layers = model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(off) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _off(got: list[Tensor], expected: list[Tensor]) -> float:
    """‖got - expected‖ / ‖expected‖, of the sample and the token where it is largest."""
    pairs = [(a.double(), b.double()) for a, b in zip(got, expected, strict=True)]
    return max(((a - b).norm(dim=-1) / b.norm(dim=-1)).amax().item() for a, b in pairs)


def _apart(got: list[Tensor], expected: list[Tensor], allowed: float) -> str:
    """Empty if every sample's logits are as near as roundings leave them."""
    off = _off(got, expected)
    if off <= allowed:  # false for NaN
        return ""
    return f"logits are {off:.2g} off, of {allowed:.2g} that roundings explain"


def _other_counts(report: Any, plan: Plan, prompted: Prompted) -> str:
    layers = len(prompted.model.model.language_model.layers)
    sizes = (prompted.inputs["input_ids"] == prompted.image).sum(1).tolist()
    expected = tuple(plan.tokens_per_layer(n, layers) for n in sizes)
    return "" if report.tokens == expected else f"ran {report.tokens}, the plan says {expected}"
