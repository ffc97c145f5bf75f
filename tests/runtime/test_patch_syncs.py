"""Inside our hooks the host waits for the device once, where pictures are found, and nowhere else.

On a GPU torch itself raises at a wait; on the CPU, where nothing waits, `HostReads` counts what
would. `test_host_reads.py` counts whole forwards; this looks into hooks alone, and runs on both.
"""

import warnings
from contextlib import contextmanager

import torch
from devices import DEVICE
from host_reads import HostReads
from model_runs import FOUR_STAGES, both_layouts, continuation, first_rows, probing

import vtfast
from vtfast import Prune
from vtfast.kernels._packed_attention import CopiedStep, RaggedSamples
from vtfast.runtime.hooks import PatchHooks
from vtfast.runtime.packed_kv_cache import PackedKVLayer

QUIET = (
    (PatchHooks, ("_text_pre", "_layer_pre", "_text_post")),
    (PackedKVLayer, ("update",)),
    (RaggedSamples, ("attend",)),
    (CopiedStep, ("attend",)),
)


@contextmanager
def counting(waits: list[str]):
    """Adds to `waits` what the block waits for."""
    if DEVICE == "cpu":
        with HostReads() as reads:
            yield
        waits += reads.calls
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [str(w.message) for w in caught if "synchronizing" in str(w.message)]


def watch(monkeypatch, owner, name, waits):
    inner = getattr(owner, name)

    def watched(*args, **kwargs):
        with counting(waits):
            return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)


def waits_of(monkeypatch, family, path, plan):
    """Waits where pictures are found, and everywhere else in our hooks, while generating."""
    once: list[str] = []
    never: list[str] = []
    watch(monkeypatch, PatchHooks, "_multimodal_pre", once)
    for owner, names in QUIET:
        for name in names:
            watch(monkeypatch, owner, name, never)
    model = family.build().to(DEVICE)
    inputs = {name: value.to(DEVICE) for name, value in family.inputs("batch").items()}
    with vtfast.patch(model, plan, path=path):
        continuation(model, inputs, steps=5)
    return once, never


@both_layouts
def test_hooks_wait_once_where_pictures_are_found_and_nowhere_else(monkeypatch, family, path):
    once, never = waits_of(monkeypatch, family, path, FOUR_STAGES)
    assert never == []
    assert len(once) <= 1


@both_layouts
def test_a_wait_in_a_hook_is_seen(monkeypatch, family, path):
    def nosy(context):
        context.features.sum().item()
        return first_rows(context)

    with probing(nosy):
        _, never = waits_of(monkeypatch, family, path, [Prune(1, "test-probe", 0.5)])
    assert len(never) == 1
