"""Check which rows of a KV cache each sequence owns, and copy these ranges to the device."""

from operator import add
from typing import Any

import torch

from ._checks import check_count, check_tensor, checked_ints
from ._device_cache import cached_per_stream
from ._sdpa import back_to_back


def checked_bound(op: str, rows: int, max_length: object) -> int:
    """The most rows a sequence can have: `max_length`, or all `rows` if it is None."""
    if max_length is None:
        return rows
    (bound,) = checked_ints(op, "max_length", (max_length,), 1)
    if bound < 0:
        raise ValueError(f"{op}: max_length={bound}; pass an int >= 0, or None")
    return min(bound, rows)


def checked_host_ranges(
    op: str, batch: int, rows: int, lengths: Any, starts: Any, longest: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and starts as Python ints, one of each per sequence; every range lies in the rows."""
    counts = checked_ints(op, "lengths", lengths, batch)
    starts = back_to_back(counts) if starts is None else starts
    first_rows = checked_ints(op, "starts", starts, batch)
    lowest, most = min((*counts, *first_rows, 0)), max(counts, default=0)
    if lowest >= 0 and most <= longest and max(map(add, counts, first_rows), default=0) <= rows:
        return counts, first_rows
    for sequence, (start, length) in enumerate(zip(first_rows, counts, strict=True)):
        if start < 0 or length < 0 or start + length > rows:
            raise ValueError(
                f"{op}: sequence {sequence} starts at row {start} with length {length}, outside "
                f"the {rows} rows there are; pass 0 <= start and start + length <= {rows}"
            )
        if length > longest:
            raise ValueError(
                f"{op}: sequence {sequence} has {length} rows, more than max_length={longest}; "
                "pass a bound that holds, or None"
            )
    return counts, first_rows


def check_device_ranges(op: str, q: torch.Tensor, lengths: torch.Tensor, starts: Any) -> None:
    """Refuse ranges that are not one int32 per sequence on the device of q. Values are not read."""
    given = {"lengths": lengths} if starts is None else {"lengths": lengths, "starts": starts}
    for name, x in given.items():
        check_tensor(op, name, x, ndim=1, dtypes=(torch.int32,), device=q.device)
        check_count(op, name, x, len(q))


def op_ranges(lengths: Any, starts: Any) -> tuple[Any, Any, tuple[int, ...]]:
    """Ranges as the registered op takes them: two tensors, or all host ints in one tuple."""
    if not isinstance(lengths, torch.Tensor):
        return None, None, (*lengths, *starts)
    starts = back_to_back(lengths) if starts is None else starts
    return lengths.contiguous(), starts.contiguous(), ()


@cached_per_stream("ranges of rows (lengths, then starts)")
def on_device(
    host_ranges: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy `host_ranges`, all lengths and then all starts, to two int32 `[B]` tensors.

    Nothing waits: the copy starts from pinned memory. All layers of a model share it.
    """
    with torch.inference_mode(False), torch.no_grad():  # cached across calls, as in `ragged`
        batch = len(host_ranges) // 2
        padding = -batch % 4  # so that starts, too, begin at a multiple of 16 bytes
        numbers = (*host_ranges[:batch], *[0] * padding, *host_ranges[batch:])
        pinned = device.type == "cuda"
        both = torch.tensor(numbers, dtype=torch.int32, device="cpu", pin_memory=pinned)
        both = both.to(device, non_blocking=True)
        return both[:batch], both[batch + padding :]
