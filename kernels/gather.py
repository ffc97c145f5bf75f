"""Copy chosen rows of several packed tensors together.

`out_t[j] = x_t[index[j]]` for every tensor t. Hidden states, rotary rows and positions travel
by the same index, so one call moves them all. Exact: rows are copied, whatever their dtype.
"""

import torch

from . import reference
from .checks import INDEX_DTYPES, check_impl, check_tensor

_OP = "gather_rows"


def gather_rows(
    index: torch.Tensor, *tensors: torch.Tensor, impl: str = "auto"
) -> tuple[torch.Tensor, ...]:
    """Gather rows `index` of each tensor.

    Args:
        index: `[K]` int32|int64, 0 ≤ index[j] < T; order preserved, repeats allowed, K = 0 allowed.
            Values on a CUDA device are not checked.
        tensors: one or more `[T, ...]`, any dtype and strides, same T and device as `index`.
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        One contiguous `[K, ...]` tensor per input (a tuple also for one input), dtype kept.

    Raises:
        ValueError: a rank, row count or device that does not fit.
        TypeError: an index that is not int32 or int64.

    >>> hidden, positions = gather_rows(torch.tensor([0, 2]), torch.zeros(3, 8), torch.arange(3))
    >>> hidden.shape, positions.shape
    (torch.Size([2, 8]), torch.Size([2]))
    """
    check_impl(_OP, impl)
    check_tensor(_OP, "index", index, ndim=1, dtypes=INDEX_DTYPES)
    if not tensors:
        raise ValueError(f"{_OP}: got an index but no tensor to gather from; pass at least one")
    for number, x in enumerate(tensors):
        name = f"tensor {number}"
        check_tensor(_OP, name, x, device=index.device)
        if x.ndim == 0:
            raise ValueError(f"{_OP}: {name} must have at least 1 dimension; it has no rows")
        if len(x) != len(tensors[0]):
            raise ValueError(
                f"{_OP}: {name} has shape {tuple(x.shape)} but tensor 0 has "
                f"{tuple(tensors[0].shape)}; all need the same number of rows"
            )
    return reference.gather_rows(index, *tensors)
