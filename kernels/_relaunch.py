"""Launch a compiled kernel again without Triton's own look-up, which takes longer than the launch.

Triton inspects every argument, constant and option to find the compiled kernel. That is too slow
for an op that runs in every layer for every token. `Relaunch` keeps the compiled kernel of each
launch under a key of everything that Triton specialises on and more: dtypes, the values of sizes
and strides, constants, options, the device. Three cases still go through Triton's look-up: tensors
that do not start at a multiple of 16 bytes, interpreted kernels (nothing is compiled), and on AMD
tensors in a storage of more than 2 GiB, for which AMD's compiler makes another kernel.
"""

from collections.abc import Mapping
from typing import Any

import torch

_MAX_ENTRIES = 256  # compiled kernels kept for one `Relaunch`; then all are dropped
_INT32_MAX = 2**31 - 1
_AMD = torch.version.hip is not None


class Relaunch:
    """Wrap a Triton kernel; call it with grid (3 ints), arguments in order, constants, options."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[tuple[object, ...], Any] = {}
        parameters = getattr(kernel, "params", None)
        if not isinstance(parameters, list):  # interpreted, or Triton is not installed
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
        found = self.compiled.get(known) if pointers % 16 == 0 else None
        if found is not None:
            compiled, values = found
            compiled[grid](*arguments, *values)
            return
        compiled = self.kernel[grid](*arguments, **constants, **options)
        if compiled is not None and pointers % 16 == 0:
            if len(self.compiled) >= _MAX_ENTRIES:
                self.compiled.clear()
            self.compiled[known] = compiled, tuple(constants[name] for name in self.constants)
