"""Run all variants of a prefill on the same prompts, and count what each costs.

- unpatched: stock transformers on all tokens, with SDPA, and with FlashAttention-2 if installed;
- native: the same model on sequences as short as the plan makes them (`native_run.py`);
- padded, packed: patched, in either layout.
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
from vtfast import Plan
from vtfast.runtime.names import cache_argument, returned_cache


@dataclass(frozen=True)
class Variant:
    """`prefill` gives the last token's logits [B, V] and a state, from which `step` goes on.

    within: makes the context in which both must run.
    """

    within: Callable[[], AbstractContextManager]
    prefill: Callable[[], tuple[Tensor, Any]]
    step: Callable[[Any, int], Tensor]


class Prompted:
    """One model with one batch of prompts on its device.

    Args:
        model: unpatched, its pictures encoded (`random_models.encoded_once`).
        inputs: with `attention_mask` and `position_ids`, one picture a sample.
        steps: how many decoded tokens are timed.
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
        """The unpatched model with FlashAttention-2, if that is installed."""
        flash = self.stock(lambda: attention(self.model, "flash_attention_2"))
        return {FLASH: flash} if is_flash_attn_2_available() else {}

    def variants(self, plan: Plan) -> dict[str, Variant]:
        """All that can be run, by their names."""
        patched = {path: self.patched(plan, path) for path in (PADDED, PACKED)}
        return {UNPATCHED: self.stock(), **self.flash(), NATIVE: self.native(plan), **patched}


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Set the attention implementation of the language model while the block runs."""
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
    """Milliseconds of prefills and, in the first `decoded` rounds, per token decoded afterwards."""
    clock, taken = clock_of(device), {name: {"ttft": [], "decode": []} for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            variant, state = variants[name], None
            if device == "cuda":
                gc.collect()  # caches still held would count, and might not leave room
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
    """Median and percentiles of the ratios within each round."""
    return summary([a / b for a, b in zip(taken, to, strict=True)])


def counts(variant: Variant, device: str) -> dict[str, int | None]:
    """Count in one prefill, not the first: kernels on a GPU, dispatched operators (inner ones too),
    host reads, allocations, peak memory above what was in use, bytes of the KV cache."""
    with variant.within():
        with profiling(device) as seen:
            variant.prefill()
        reads = host_reads(variant.prefill, device)
        memory = memory_on_gpu(variant.prefill) if device == "cuda" else memory_on_cpu(seen)
        _, state = variant.prefill()
    caches = state if isinstance(state, list) else [state]  # the native run has one per stage span
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
