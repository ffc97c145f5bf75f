"""Counts how often the host waits for a device, on a machine that has none.

On a GPU each of these stalls Python until the device has caught up. On the CPU nothing stalls, but
the same calls happen, and two modes of torch see them:

- A dispatch mode sees operators: `_local_scalar_dense` (`item`, `int`, `float`, `bool`, `if`, a
  tensor as an index or a length), `equal`, and those whose output size depends on values
  (`nonzero`, `masked_select`, `unique`, indexing with a boolean mask, `bincount`,
  `repeat_interleave` without `output_size`, …), and `x[rows] = 0`, which copies the number from
  memory that is not pinned, and waits for the copy (`index_fill_` does not).
- A function mode sees calls that never become an operator on the CPU: `tolist`, `cpu`, `print`;
  and those that become none in inference mode: numbers, `where`, lengths.

Not counted: `numpy`, which a tensor on a GPU refuses, so it cannot wait for one. Not seen: copies
to a device, and what reads a tensor without torch (`data_ptr` and the like).
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ALWAYS = {
    _aten._local_scalar_dense,
    _aten.equal,
    _aten.nonzero,
    _aten.nonzero_numpy,
    _aten.argwhere,
    _aten.masked_select,
    _aten.bincount,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.unique_dim_consecutive,
    _aten._unique,
    _aten._unique2,
}
_METHODS = {
    torch.Tensor.tolist,
    torch.Tensor.cpu,
    torch.Tensor.__repr__,
    torch.Tensor.item,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__bool__,
    torch.Tensor.__index__,
}


class HostReads:
    """`with HostReads() as reads: ...`, then `reads.count`, and what they were in `reads.calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._modes = (_Operators(self), _Functions(self))
        self._inside = False  # one of _METHODS: it may use operators, but is one read

    @property
    def count(self) -> int:
        return len(self.calls)

    def note(self, name: str) -> None:
        if not self._inside:
            self.calls.append(name)

    def __enter__(self) -> "HostReads":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)


class _Operators(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in _ALWAYS or _waits_for_values(func, args, kwargs):
            self.reads.note(str(func))
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.reads._inside or not (func in _METHODS or _hidden_read(func, args)):
            return func(*args, **(kwargs or {}))
        self.reads.note(func.__name__)
        self.reads._inside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.reads._inside = False


def _hidden_read(func, args) -> bool:
    """`torch.where(mask)` and `x[: n]` become no operator in inference mode."""
    if func is torch.where:
        return len(args) == 1
    if func is torch.Tensor.__getitem__:
        asked = args[1] if isinstance(args[1], tuple) else (args[1],)
        slices = [i for i in asked if isinstance(i, slice)]
        ends = (end for i in slices for end in (i.start, i.stop, i.step))
        return any(isinstance(end, torch.Tensor) for end in ends)
    return False


def _waits_for_values(func, args, kwargs) -> bool:
    if func.overloadpacket is _aten.repeat_interleave:
        repeats_are_values = func._overloadname in ("Tensor", "self_Tensor")
        return repeats_are_values and kwargs.get("output_size") is None
    if func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_):
        boolean = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if func.overloadpacket is _aten.index:
            return boolean
        # A number is filled in under a mask without a read; at numbered rows it is copied.
        return args[2].numel() != 1 if boolean else args[2].ndim == 0
    return False
