"""Import Triton where it is installed, decide when an op uses it, and register ops with torch.

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
from ._ops import add_op_namespace_prefix, ops


class _Absent:
    """Stand-in for triton where it is not installed, so that files with kernels can be imported."""

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **options: object) -> "_Absent":
        return self


try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels outside Linux; the PyTorch reference needs none
    triton = tl = _Absent()

HAS_TRITON = not isinstance(triton, _Absent)
TRITON_VERSION = tuple(map(int, triton.__version__.split(".")[:2])) if HAS_TRITON else (0, 0)
INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)
INTERPRETED_AS = "sm_90"  # interpreted kernels run with the launch settings of this GPU
INTERPRET = tl.constexpr(INTERPRETED)  # for kernels: the interpreter computes bf16 wrongly

LIBRARY = torch.library.Library(ops.name, "DEF")

_warned: set[str] = set()


def register(
    schema: str, launch: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Register the op `<schema>` in the namespace of `_ops.py`: `launch` runs it, `fake` gives only
    shapes and dtypes.

    Returns the op overload, which is cheaper to call than `ops.<name>`.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, launch, device)
    torch.library.register_fake(add_op_namespace_prefix(name), fake, lib=LIBRARY)
    return getattr(ops, name).default


def use_triton(
    op: str, impl: str, device: torch.device, *, why_unsupported: str = "", silent: bool = True
) -> bool:
    """Whether this call of `op` runs its Triton kernel.

    why_unsupported: why the kernel cannot take these arguments; "" if it can. impl="auto" then
    falls back to PyTorch and, unless `silent`, warns once per op; impl="triton" raises.
    """
    check_impl(op, impl)
    on_cuda = device.type == "cuda"
    if impl == "eager" or (impl == "auto" and not (on_cuda and HAS_TRITON)):
        return False
    if on_cuda:
        why_unsupported = why_unsupported or _why_gpu_unsupported(device)
    if impl == "auto":
        if why_unsupported and not silent and op not in _warned:
            _warned.add(op)
            message = f"{op}: {why_unsupported}; falling back to PyTorch"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return not why_unsupported
    if not HAS_TRITON:
        raise RuntimeError(f'{op}: triton is not installed; pass impl="eager" or install triton')
    if not on_cuda and not (device.type == "cpu" and INTERPRETED):
        raise RuntimeError(
            f"{op}: its Triton kernel runs on CUDA tensors, got {device.type}; move them to a GPU, "
            'pass impl="eager", or (CPU, to debug) set TRITON_INTERPRET=1 before importing triton'
        )
    if why_unsupported:
        raise ValueError(f'{op}: {why_unsupported}; pass impl="auto" or "eager"')
    return True


@lru_cache(maxsize=16)
def _why_gpu_unsupported(device: torch.device) -> str:
    """Why this GPU cannot run the kernels; "" if it can."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return ""
    return f"the kernels need compute capability 8.0 and this GPU has {major}.{minor}"


def architecture(device: torch.device) -> str:
    """The GPU architecture whose launch settings to use on this device."""
    return _architecture(device) if device.type == "cuda" else INTERPRETED_AS


@lru_cache(maxsize=16)
def _architecture(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    # Other GPUs, such as 12.x, have the tensor core instructions of 8.x and less shared memory. All
    # launches fit its 99 KiB, except those that `_threshold.why_unsupported_length` refuses.
    return {9: "sm_90", 10: "sm_100"}.get(torch.cuda.get_device_capability(device)[0], "sm_80")


@lru_cache(maxsize=16)
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory a program can have: 99 KiB on GPUs 8.6, 8.9 and 12.x, 163 on 8.0."""
    return triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]


def fp32_precision() -> str:
    """`input_precision` of fp32 products: three tf32 products are as exact; AMD has no tf32."""
    return "tf32x3" if torch.version.hip is None else "ieee"


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. `triton.cdiv` takes 5 µs on the host, because it also serves kernels."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two ≥ n, for n ≥ 1; here for the reason given in `cdiv`."""
    return 1 << (n - 1).bit_length()


_NO_SWITCH = nullcontext()


def on_device_of(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the device of `x` current, because Triton launches on the current device."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _NO_SWITCH
    return torch.cuda.device(x.device)
