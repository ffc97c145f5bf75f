"""Launch a compiled kernel again without asking Triton again which one it is.

Triton looks at every argument, constant and option to find what it has compiled, which takes longer
than the launch; an op that runs in every layer for every token feels it. Here a handle is kept for
what was launched before, found by all that Triton specialises on and more: types, the very values
of sizes and strides, constants, options, the device. Whatever does not start at a multiple of 16
bytes goes to Triton itself, as do interpreted kernels, which have no handle, and on AMD's GPUs what
lies in more than 2 GiB, which is compiled apart there.
"""

from collections.abc import Mapping
from typing import Any

import torch

_MOST = 256  # handles of a kernel; then it starts anew
_INT32_MAX = 2**31 - 1
_AMD = torch.version.hip is not None


class Relaunch:
    """A kernel; call it with its grid (3 numbers), arguments in order, constants and options."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.handles: dict[tuple[object, ...], Any] = {}
        parameters = getattr(kernel, "params", None)
        if not isinstance(parameters, list):  # interpreted, or there is no Triton
            parameters = []
        self.free = tuple(p.do_not_specialize for p in parameters if not p.is_constexpr)
        self.constants = tuple(p.name for p in parameters if p.is_constexpr)

    def __call__(
        self,
        grid: tuple[int, int, int],
        arguments: tuple[Any, ...],
        constants: Mapping[str, Any],
        options: Mapping[str, int],
    ) -> None:
        key: list[object] = [arguments[0].device, *constants.values(), *options.values()]
        pointers = 0
        for x, free in zip(arguments, self.free, strict=False):
            if isinstance(x, torch.Tensor):
                pointers |= x.data_ptr()
                if _AMD:
                    pointers |= x.untyped_storage().nbytes() > _INT32_MAX
                key.append(x.dtype)
            elif isinstance(x, int):
                key.append(x > _INT32_MAX if free else x)
            else:
                key.append(type(x))
        known = tuple(key)
        handle = self.handles.get(known) if pointers % 16 == 0 else None
        if handle is not None:
            compiled, values = handle
            compiled[grid](*arguments, *values)
            return
        compiled = self.kernel[grid](*arguments, **constants, **options)
        if compiled is not None and pointers % 16 == 0:
            if len(self.handles) >= _MOST:
                self.handles.clear()
            self.handles[known] = compiled, tuple(constants[name] for name in self.constants)
