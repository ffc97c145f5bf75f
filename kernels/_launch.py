"""What every kernel needs around it: triton if it is there, when to use it, how to register an op.

An op is registered with `torch.library`, so that `torch.compile` sees one opaque call with a known
result, and the dispatcher runs the same launcher on a GPU and, under Triton's interpreter
(`TRITON_INTERPRET=1` before triton is imported), on the CPU.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch

from ._checks import check_impl


class _Absent:
    """Stands for triton where it is not installed: kernels can be read then, not launched."""

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **options: object) -> "_Absent":
        return self


try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels outside Linux; the eager twins need none
    triton = tl = _Absent()

HAS_TRITON = not isinstance(triton, _Absent)
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2])) if HAS_TRITON else (0, 0)
INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)
INTERPRETED_AS = "sm_90"  # the GPU whose settings interpreted kernels run with
INTERPRET = tl.constexpr(INTERPRETED)  # for kernels: the interpreter computes bf16 on raw bits

LIBRARY = torch.library.Library("vtfast", "DEF")

_said: set[str] = set()


def register(
    schema: str, launch: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Make `vtfast::<schema>` an op run by `launch`; `fake` gives shapes and dtypes alone.

    Returns the overload itself, which is cheaper to call than `torch.ops.vtfast.<name>`.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, launch, device)
    torch.library.register_fake(f"vtfast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.vtfast, name).default


def use_triton(
    op: str, impl: str, device: torch.device, *, unable: str = "", silent: bool = True
) -> bool:
    """Whether this call runs the kernel; an explicit choice that cannot be had raises.

    `unable` says why the kernel cannot take these arguments, "" if it can. "auto" then takes the
    eager twin, and unless `silent` says so once per op.
    """
    check_impl(op, impl)
    if device.type == "cuda":
        unable = unable or _lacking(device)
    if impl == "eager" or (impl == "auto" and (device.type != "cuda" or not HAS_TRITON)):
        return False
    if impl == "auto":
        if unable and not silent and op not in _said:
            _said.add(op)
            warnings.warn(f"{op}: {unable}; the eager twin does it", RuntimeWarning, stacklevel=3)
        return not unable
    if not HAS_TRITON:
        raise RuntimeError(f'{op}: triton is not installed; pass impl="eager" or install triton')
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        raise RuntimeError(
            f"{op}: its Triton kernel runs on CUDA tensors, got {device.type}; move them to a GPU, "
            'pass impl="eager", or (CPU, to debug) set TRITON_INTERPRET=1 before importing triton'
        )
    if unable:
        raise ValueError(f'{op}: {unable}; pass impl="auto" or "eager"')
    return True


@lru_cache(maxsize=16)
def _lacking(device: torch.device) -> str:
    """What a GPU has not that every kernel needs; "" if nothing."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return (
        "" if major >= 8 else f"kernels take compute capability 8.0, this GPU has {major}.{minor}"
    )


def architecture(device: torch.device) -> str:
    """Whose settings to launch with on a device: those of one of the GPUs we ship for."""
    return _architecture(device) if device.type == "cuda" else INTERPRETED_AS


@lru_cache(maxsize=16)
def _architecture(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    # Others, 12.x among them, have the tensor core instructions of 8.x and less shared memory: what
    # is launched there with these settings fits 99 KiB, or `threshold.unable` says so.
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


@lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes of it that a program can have: 99 KiB on GPUs 8.6, 8.9 and 12.x, 163 or more on 8.0."""
    return triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


def fp32_precision() -> str:
    """How tensor cores multiply fp32 without losing it: in three tf32 products, unknown to AMD."""
    return "tf32x3" if torch.version.hip is None else "ieee"


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. Triton's own takes 5 µs on the host, since it serves kernels too."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below n, of a positive n; see `cdiv`."""
    return 1 << (n - 1).bit_length()


_HERE = nullcontext()


def on_device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)
