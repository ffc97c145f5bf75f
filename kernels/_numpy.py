"""NumPy where it is installed: on CPU memory its loops take less time than those of PyTorch.

vtfast requires NumPy, PyTorch does not: the kernels loaded without vtfast (docs/hub.md) do without.
"""

from types import SimpleNamespace

import torch

try:
    import numpy as np
except ImportError:
    np = SimpleNamespace(ndarray=object)  # type: ignore[assignment]

HAS_NUMPY = hasattr(np, "bool_")


def numpy_reads(x: torch.Tensor) -> bool:
    """Whether NumPy can work on the memory of `x`."""
    return HAS_NUMPY and x.device.type == "cpu"
