"""What a prefill costs besides time: launches, operators, waits, allocations, memory; by whom.

Counted with torch.profiler and, on a GPU, by PyTorch's memory pool. A launch is a kernel on the
device, an operator whatever PyTorch or vtfast dispatches (inner ones too), a wait a host read.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any
from unittest import mock

import parity  # noqa: F401  (puts tests/ on the path)
import torch
from harness import host_reads
from prefills import Way
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

_COPIES = ("Memcpy", "Memset")


def counts(way: Way, device: str) -> dict[str, int | None]:
    """Of one prefill, which has run before."""
    with way.within():
        with _profiling(device) as seen:
            way.prefill()
        reads = waits(way.prefill, device)
        memory = _cuda_memory(way.prefill) if device == "cuda" else _cpu_memory(seen)
        _, state = way.prefill()
    events = seen.events()
    return {
        "launches": sum(map(_is_kernel, events)) if device == "cuda" else None,
        "operators": sum("::" in e.name for e in events),
        "host_reads": reads,
        **memory,
        "kv_bytes": kv_bytes(state),
    }


def _profiling(device: str) -> profile:
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device == "cuda" else []
    return profile(activities=activities, profile_memory=device == "cpu")


def _is_kernel(event: Any) -> bool:
    on_device = event.device_type == DeviceType.CUDA
    return on_device and not event.is_user_annotation and not event.name.startswith(_COPIES)


def waits(call: Callable[[], object], device: str) -> int:
    """How often the host reads the device back."""
    if device == "cuda":
        return host_reads(call)
    from host_reads import HostReads

    with HostReads() as found:
        call()
    return found.count


def _cuda_memory(call: Callable[[], object]) -> dict[str, int]:
    """Allocations, and the most that is held above what there was before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    call()
    after = torch.cuda.memory_stats()
    made = "allocation.all.allocated"
    peak = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"]
    return {"allocations": after[made] - before[made], "peak_bytes": peak}


def _cpu_memory(seen: profile) -> dict[str, int]:
    """The same from the events that the profiler notes for the CPU's memory."""
    events = seen.profiler.kineto_results.events()
    taken = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    sizes = [size for _, size in sorted(taken)]
    return {
        "allocations": sum(size > 0 for size in sizes),
        "peak_bytes": max(accumulate(sizes), default=0),
    }


def kv_bytes(state: Any) -> int:
    """Of all keys and values that a prefill leaves allocated: in one cache, or in one a run."""
    caches = state if isinstance(state, list) else [state]
    layers = [layer for cache in caches for layer in cache.layers if layer.is_initialized]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


# -- who takes the time ----------------------------------------------------------------------------


def parts() -> list[tuple[Any, str]]:
    """What vtfast adds to a forward: its hooks, and what they call."""
    from vtfast.runtime.layouts import Packed, Padded

    from vtfast.runtime import attention
    from vtfast.runtime.hooks import PatchHooks
    from vtfast.runtime.packed_kv_cache import PackedKVLayer
    from vtfast.runtime.state import ForwardState

    hooks = ("_multimodal_pre", "_tower_pre", "_text_pre", "_layer_pre", "_text_post")
    return [
        *((PatchHooks, name) for name in hooks),
        *((ForwardState, name) for name in ("_select", "_take", "_hashes", "_attention", "finish")),
        *((layout, "enter") for layout in (Packed, Padded)),
        (PackedKVLayer, "update"),
        (attention, "ragged_attention"),
    ]


@contextmanager
def labelled() -> Iterator[None]:
    """Within the block the profiler sees these parts by name."""
    with ExitStack() as stack:
        for owner, name in parts():
            label = f"vtfast: {owner.__name__.split('.')[-1]}.{name}"
            inner = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, _labelled(inner, label)))
        yield


def _labelled(inner: Callable, label: str) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return inner(*args, **kwargs)

    return call


def profiled(ways: dict[str, Way], device: str, repeats: int = 3) -> dict[str, dict[str, dict]]:
    """For each way: name of a part or operator → calls and milliseconds in one prefill.

    `host` is the time spent on the host: of a part with all it calls, of an operator alone.
    `device` is that of the kernels it launches, None on a CPU.
    """
    found = {}
    with labelled():
        for name, way in ways.items():
            with way.within(), _profiling(device) as seen:
                for _ in range(repeats):
                    way.prefill()
            found[name] = {
                row.key: {
                    "calls": row.count / repeats,
                    "host": _milliseconds(row, "cpu", repeats),
                    "device": _milliseconds(row, "device", repeats) if device == "cuda" else None,
                }
                for row in seen.key_averages()
                if row.device_type == DeviceType.CPU
            }
    return found


def _milliseconds(row: Any, where: str, repeats: int) -> float:
    own = "" if row.key.startswith("vtfast: ") else "self_"
    return getattr(row, f"{own}{where}_time_total") / repeats / 1e3


def contributors(found: dict[str, dict], ours: str, theirs: str, top: int = 12) -> str:
    """Where one way spends more than another: its parts, then the operators, largest first."""
    mine, other = found[ours], found[theirs]
    clock = "device" if any(row["device"] for row in mine.values()) else "host"

    def more(name: str) -> float:
        nothing = {"host": 0.0, "device": 0.0}
        return mine.get(name, nothing)[clock] - other.get(name, nothing)[clock]

    lines = [f"{ours} beside {theirs}: milliseconds of a prefill on the {clock}"]
    for title, is_part in (("by hook, with what it calls", True), ("by operator", False)):
        names = {n for n in (*mine, *other) if n.startswith("vtfast: ") == is_part}
        lines.append(title)
        for name in sorted(names, key=lambda n: -abs(more(n)))[:top]:
            calls = [way.get(name, {"calls": 0})["calls"] for way in (mine, other)]
            lines.append(f"  {more(name):+9.3f}  {calls[0]:5.0f} calls ({calls[1]:.0f})  {name}")
    return "\n".join(lines)
