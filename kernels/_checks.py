"""Argument checks that all ops share.

They look at shapes, dtypes, devices and host ints, never at the values of a tensor, and run before
any launch. Each raises ValueError or TypeError with what it got, what it expected and what to do.
"""

from collections.abc import Sequence, Sized
from operator import gt

import torch

from .ragged import Ragged, host_ints, is_host_int

INDEX_DTYPES = (torch.int32, torch.int64)
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
REFERENCE_DTYPES = (*KERNEL_DTYPES, torch.float64)
IMPLS = ("auto", "eager", "triton")


def check_impl(op: str, impl: str) -> None:
    """Refuse an unknown implementation."""
    if impl not in IMPLS:
        raise ValueError(f"{op}: impl={impl!r} is unknown; pass one of {', '.join(IMPLS)}")


def check_tensor(
    op: str,
    name: str,
    x: object,
    *,
    ndim: int | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """Refuse what is not a tensor of this rank, one of these dtypes, on this device."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {expected}, got {x.dtype}; cast it first")
    if device is not None and x.device != device:
        raise ValueError(
            f"{op}: {name} is on {x.device} but the other arguments are on {device}; move it there"
        )


def check_floating(op: str, name: str, x: torch.Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}; cast it first")


def why_unsupported_dtype(dtype: torch.dtype) -> str:
    """Why the kernels cannot compute in this floating dtype; "" if they can."""
    return "" if dtype in KERNEL_DTYPES else f"the kernel does not take {dtype}"


def check_segments(op: str, name: str, segments: Ragged) -> None:
    if not isinstance(segments, Ragged):
        raise TypeError(
            f"{op}: {name} must be a Ragged, got {type(segments).__name__}; "
            "build it with Ragged.from_lengths(lengths, device)"
        )


def check_covers(op: str, name: str, segments: Ragged, x_name: str, rows: int) -> None:
    """Refuse segments whose lengths do not sum to the rows there are."""
    if segments.total != rows:
        raise ValueError(
            f"{op}: the lengths of {name} sum to {segments.total} but {x_name} has {rows} "
            "rows; they must agree"
        )


def check_has_rows(op: str, name: str, x: object, device: torch.device | None = None) -> None:
    """Refuse anything but a tensor with at least one dimension, the rows to gather from."""
    check_tensor(op, name, x, device=device)
    assert isinstance(x, torch.Tensor)
    if x.ndim == 0:
        raise ValueError(f"{op}: {name} must have at least 1 dimension; it has no rows")


def checked_keep(op: str, segments: Ragged, keep: Sequence[int]) -> tuple[int, ...]:
    """`keep` as a tuple of host ints: one per segment, from 0 to the length of the segment."""
    counts = checked_ints(op, "keep", keep, len(segments))
    if min(counts, default=0) < 0 or any(map(gt, counts, segments.lengths)):
        for segment, (count, length) in enumerate(zip(counts, segments.lengths, strict=True)):
            if not 0 <= count <= length:
                raise ValueError(
                    f"{op}: keep={count} for segment {segment}, which has {length} rows; "
                    f"pass 0 <= keep <= {length}"
                )
    return counts


def checked_ints(op: str, name: str, values: object, segments: int) -> tuple[int, ...]:
    """`values` as Python ints, one per segment."""
    counts = host_ints(f"{op}: {name}", values)
    check_count(op, name, counts, segments)
    return counts


def checked_number(
    op: str,
    name: str,
    value: int | torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    low: int,
    high: int,
) -> int | torch.Tensor:
    """An int in [low, high) as a Python int, or a `[1]` tensor of this dtype and device."""
    if isinstance(value, torch.Tensor):
        check_tensor(op, name, value, ndim=1, dtypes=(dtype,), device=device)
        if len(value) != 1:
            raise ValueError(f"{op}: {name} must hold one number, got shape {tuple(value.shape)}")
        return value
    if not is_host_int(value):
        raise TypeError(f"{op}: {name} must be an int or a tensor, got {type(value).__name__}")
    number = int(value)
    if not low <= number < high:
        raise ValueError(f"{op}: {name}={number} is out of range; pass {low} <= {name} < {high}")
    return number


def check_count(op: str, name: str, values: Sized, segments: int) -> None:
    if len(values) != segments:
        raise ValueError(
            f"{op}: {name} has {len(values)} entries for {segments} segments; pass one per segment"
        )


def check_heads(op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None = None) -> None:
    """Refuse queries `[*, H, D]` that do not fit keys `[*, Hkv, D]`, or values unlike the keys."""
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{op}: q has head size {q.shape[2]} but the keys have {k.shape[2]}; they must agree"
        )
    if 0 in (q.shape[1], k.shape[1]) or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{op}: {q.shape[1]} query heads cannot share {k.shape[1]} key heads evenly; "
            "pass a multiple"
        )
    if v is not None and v.shape != k.shape:
        raise ValueError(
            f"{op}: keys are {tuple(k.shape)} but values are {tuple(v.shape)}; "
            "they must have one shape"
        )
