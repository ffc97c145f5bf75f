"""A stand-in for the driver of an absent GPU: Triton compiles for it and launches nothing.

For compiling ahead of time, and for timing what Python does around a launch.
"""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class _Launcher:
    """Accepts a launch and does nothing."""

    def __init__(self, source: Any, metadata: Any):
        pass

    def __call__(self, *arguments: Any) -> None:
        pass


class _Utilities:
    """What is asked of a driver before the first launch of a kernel."""

    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads at most

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class NoDriver:
    launcher_cls = _Launcher
    utils = _Utilities()

    def __init__(self, arch: str):
        self.target = target(arch)

    def get_current_device(self) -> int:
        return hash(self.target)  # Triton asks for the target of a device once

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def target(arch: str) -> GPUTarget:
    """`sm_90`, or one of AMD's: `gfx942`."""
    if arch.startswith("sm_"):
        return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return GPUTarget("hip", arch, 64)


def stand_in(arch: str) -> None:
    """From here on the ops treat CPU tensors as tensors of such a GPU, and compute nothing."""
    torch.version.hip = None if arch.startswith("sm_") else "6.4"  # before a kernel looks at it
    from vtfast.kernels import _launch

    assert not triton.knobs.runtime.interpret, "unset TRITON_INTERPRET: here nothing is interpreted"
    driver.set_active(NoDriver(arch))
    _launch.INTERPRETED = True  # so that CPU tensors are accepted
