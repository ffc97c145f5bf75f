"""What the host has to know of a call, fetched from the device in one transfer.

Counts and boundaries of tokens are host integers, so that nothing that follows waits for the
device. This is the only thing a prefill reads back, and decoding reads nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_host(values: Sequence[Tensor]) -> list[np.ndarray]:
    """Copies of bool and int64 tensors in host memory, by a single read of the device."""
    wide_first = sorted(range(len(values)), key=lambda i: values[i].dtype == torch.bool)
    flat = [values[i].contiguous().flatten().view(torch.uint8) for i in wide_first]
    device = values[0].device
    read = torch.cat([t.to(device) for t in flat]).cpu().numpy()
    found, start = {}, 0
    for i, part in zip(wide_first, flat, strict=True):
        kind = bool if values[i].dtype == torch.bool else np.int64
        found[i] = read[start : start + len(part)].view(kind).reshape(values[i].shape)
        start += len(part)
    return [found[i] for i in range(len(values))]


def to_device(values: Sequence[int] | np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Host integers to an int64 device tensor without waiting for the device."""
    there = values.device if isinstance(values, Tensor) else "cpu"  # whatever the default device is
    host = torch.as_tensor(values, dtype=torch.int64, device=there)
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
