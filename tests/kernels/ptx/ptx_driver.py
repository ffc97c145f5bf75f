"""A stand-in for Triton's driver: launches of compiled kernels run on CPU tensors.

Call `activate("sm_90")` before the first launch, without `TRITON_INTERPRET`; `settings` says how
launches run from then on.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import triton
from ptx_machine import PtxFault, decoded, run
from ptx_program import Program
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}

# orders: of programs and warps to run each launch in, which must all give the same bits; the first
# is their natural order. check, count: see `ptx_machine.run`. launches: a list to keep what ran in.
settings = SimpleNamespace(orders=3, check=True, count=False, launches=None)


class _Launcher:
    """Runs a grid of one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.types = tuple(source.signature.values())
        self.shared = metadata.shared

    def __call__(self, x: int, y: int, z: int, stream: int, program: Program, *others: Any) -> None:
        values = list(_flat(self.types, others[4:]))  # after metadata and hooks
        tensors = [value for _, value in values if isinstance(value, torch.Tensor)]
        before = [t.clone() for t in tensors] if settings.orders > 1 else []
        for seed in range(settings.orders):
            how = {"seed": seed, "check": settings.check, "count": settings.count}
            ran = run(program, (x, y, z), values, self.shared, **how)
            if seed == 0:
                if settings.launches is not None:
                    settings.launches.append(ran)
                after = [t.clone() for t in tensors] if before else []
            elif not all(map(same_bits, tensors, after)):
                raise PtxFault(f"{program.name}: another order of programs gives other results")
            for t, old in zip(tensors, before if seed + 1 < settings.orders else [], strict=False):
                if not same_bits(t, old):
                    t.copy_(old)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they hold the same bits."""
    a, b = a.contiguous().flatten(), b.contiguous().flatten()
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _flat(types: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for kind, value in zip(types, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


class PtxDriver:
    """The parts of a driver that Triton asks for before and in a launch."""

    launcher_cls = _Launcher

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self  # what it asks of the device and its loader stands here too

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.target.arch], "multiprocessor_count": 132}

    def load_binary(self, name: str, ptx: bytes, *others: Any) -> tuple[Any, ...]:
        return 1, decoded(ptx.decode()), 32, 0, 1024  # module, function, registers, spills, threads


def _stop_at_ptx(*arguments: Any) -> tuple[str, str] | None:
    """Triton's hook on its stages: the last one hands on the PTX instead of assembling it."""
    if not arguments:
        return "ptx-on-cpu", "ptx-on-cpu"  # for the key of its cache
    arguments[1]["cubin"] = lambda ptx, metadata: ptx.encode()
    return None


def activate(arch: str) -> None:
    """From here on Triton compiles for this GPU ("sm_80", "sm_90") and launches run here."""
    assert arch in ("sm_80", "sm_90"), f"got {arch}; only PTX of sm_80 and sm_90 is executed"
    assert not triton.knobs.runtime.interpret, "unset TRITON_INTERPRET, which compiles nothing"
    triton.knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
    driver.set_active(PtxDriver(int(arch.removeprefix("sm_"))))
