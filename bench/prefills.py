"""All variants of a prefill on the same prompts, the check that they agree, and what each costs.

- unpatched: stock transformers on all tokens, with SDPA, and with FlashAttention-2 where it is;
- native: the same model on sequences as short as the plan makes them (`native_run.py`);
- padded, packed: patched, in either layout.

In every round each variant prefills once and then decodes, in alternating order, and ratios are
taken within the round. Pictures are encoded beforehand for all, and patching is not timed.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from harness import host_reads
from machine import clock_of, summary
from native_run import NativeRun
from report import FLASH, NATIVE, PACKED, PADDED, UNPATCHED
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers.utils import is_flash_attn_2_available

import vtfast
from vtfast import Plan, Prune
from vtfast.runtime.names import cache_argument, returned_cache

# Logits may be apart by so many times what rounding hidden states once more in every layer does to
# them. In bf16, 32 layers on a CPU, as ‖a - b‖ / ‖b‖: that is 0.096, eager attention in place of
# SDPA 0.065, one visual token of 72 fewer 0.27, positions one off 0.94.
ROUNDINGS = 2.0


@vtfast.register_method("bench-first", replace=True)
def first_tokens(ctx: Any) -> Tensor:
    """The first tokens of every picture, as the native run takes: then logits must agree."""
    starts = ctx.segments.cu_seqlens[:-1].tolist()
    picks = [torch.arange(s, s + k) for s, k in zip(starts, ctx.keep, strict=True)]
    return torch.cat(picks).to(ctx.features.device)


@dataclass(frozen=True)
class Variant:
    """`prefill` gives the last token's logits [B, V] and a state, from which `step` goes on.

    within: what must be entered around both.
    """

    within: Callable[[], AbstractContextManager]
    prefill: Callable[[], tuple[Tensor, Any]]
    step: Callable[[Any, int], Tensor]


class Prompted:
    """One model with one batch of prompts on its device.

    Args:
        model: unpatched, its pictures encoded (`models.encoded_once`).
        inputs: with `attention_mask` and `position_ids`, one picture a sample.
        steps: how many tokens a decoding is timed over.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], steps: int = 1) -> None:
        self.model, self.inputs, self.image = model, inputs, model.config.image_token_id
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        self.called, self.next = dict(inputs), []
        if mask.all():  # `generate` leaves such a mask out
            del self.called["attention_mask"]
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

    def stock(self, within: Callable[[], AbstractContextManager] = nullcontext) -> Variant:
        return Variant(within, self.prefill, self.step)

    def patched(self, plan: Plan, path: str) -> Variant:
        return self.stock(lambda: vtfast.patch(self.model, plan, path=path))

    def native(self, plan: Plan) -> Variant:
        run = NativeRun(self.model, self.inputs, plan, self.image)

        def step(caches: Any, t: int) -> Tensor:
            return run.step(caches, self.next[t]["input_ids"], self.next[t]["position_ids"])

        return Variant(nullcontext, run.prefill, step)

    def flash(self) -> dict[str, Variant]:
        """With FlashAttention-2, where it is installed."""
        flash = self.stock(lambda: attention(self.model, "flash_attention_2"))
        return {FLASH: flash} if is_flash_attn_2_available() else {}

    def variants(self, plan: Plan) -> dict[str, Variant]:
        """All that can be run, by their names."""
        patched = {path: self.patched(plan, path) for path in (PADDED, PACKED)}
        return {UNPATCHED: self.stock(), **self.flash(), NATIVE: self.native(plan), **patched}


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


def race(
    variants: dict[str, Variant], rounds: int, device: str, steps: int = 0, decoded: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of prefills, and in the first `decoded` rounds of a token decoded after one."""
    clock, taken = clock_of(device), {name: {"ttft": [], "decode": []} for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            variant, state = variants[name], None
            if device == "cuda":
                gc.collect()  # what is still held would count, and might not fit
            with variant.within():
                start = clock()
                _, state = variant.prefill()
                first = clock()
                taken[name]["ttft"].append((first - start) * 1e3)
                if number < decoded:
                    for t in range(steps):
                        variant.step(state, t)
                    taken[name]["decode"].append((clock() - first) * 1e3 / steps)
    return taken


def ratios(taken: list[float], to: list[float]) -> dict[str, float]:
    """Median and spread of the ratios within the rounds."""
    return summary([a / b for a, b in zip(taken, to, strict=True)])


def disagreements(prompted: Prompted, plan: Plan) -> dict[str, str]:
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
    layers = len(prompted.model.model.language_model.layers)
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


def two_logits(variant: Variant) -> list[Tensor]:
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
    hooks = [layer.register_forward_pre_hook(off) for layer in model.model.language_model.layers]
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


def counts(variant: Variant, device: str) -> dict[str, int | None]:
    """Of one prefill that has run before: kernels on a GPU, dispatched operators (inner ones too),
    host reads, allocations, the most memory held above what there was, bytes of the KV cache."""
    with variant.within():
        with profiling(device) as seen:
            variant.prefill()
        reads = host_reads(variant.prefill, device)
        memory = memory_on_gpu(variant.prefill) if device == "cuda" else memory_on_cpu(seen)
        _, state = variant.prefill()
    caches = state if isinstance(state, list) else [state]  # the native run has one a span
    layers = [layer for cache in caches for layer in cache.layers if layer.is_initialized]
    return {
        "launches": sum(map(is_kernel, seen.events())) if device == "cuda" else None,
        "operators": operators(seen),
        "host_reads": reads,
        **memory,
        "kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
    }


def profiling(device: str) -> profile:
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    return profile(activities=activities, profile_memory=device == "cpu")


def operators(seen: profile) -> int:
    return sum("::" in event.name for event in seen.events())


def is_kernel(event: Any) -> bool:
    on_device = event.device_type == DeviceType.CUDA and not event.is_user_annotation
    return on_device and not event.name.startswith(("Memcpy", "Memset"))


def memory_on_gpu(call: Callable[[], object]) -> dict[str, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    call()
    after, made = torch.cuda.memory_stats(), "allocation.all.allocated"
    peak = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"]
    return {"allocations": after[made] - before[made], "peak_bytes": peak}


def memory_on_cpu(seen: profile) -> dict[str, int]:
    """Allocations, and the most that was alive at once, from the profiler's events."""
    events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    sizes = [size for _, size in sorted((e.start_ns(), e.nbytes()) for e in events)]
    peak = max(accumulate(sizes), default=0)
    return {"allocations": sum(size > 0 for size in sizes), "peak_bytes": peak}
