"""Launch a compiled kernel again and again without Triton's own look-up.

To find the compiled kernel Triton inspects every argument, constant and option, which takes longer
than the launch itself. Layers of a model launch the same kernel on tensors that differ only in
their addresses, so one look-up serves them all.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

# AMD's compiler makes another kernel for tensors in a storage of more than 2 GiB.
_ALWAYS_ASK = torch.version.hip is not None


class Repeat:
    """A Triton kernel with its grid (3 ints), constants and options.

    Call it with the other arguments in order. From one call to the next only addresses of tensors
    may change, and integers that the kernel does not specialise on, never dtypes nor any other
    argument. Tensors that do not start at a multiple of 16 bytes, for which Triton compiles another
    kernel, and interpreted kernels go through Triton's look-up.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        constants: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self._kernel, self._grid = kernel, grid
        self._constants, self._options = constants, options
        self._compiled: Callable[..., None] | None = None
        self._values: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> None:
        pointers = 0
        for x in arguments:
            if isinstance(x, torch.Tensor):
                pointers |= x.data_ptr()
        if pointers % 16 == 0 and self._compiled is not None:
            self._compiled(*arguments, *self._values)
            return
        compiled = self._kernel[self._grid](*arguments, **self._constants, **self._options)
        if compiled is not None and pointers % 16 == 0 and not _ALWAYS_ASK:
            names = (p.name for p in self._kernel.params if p.is_constexpr)
            self._values = tuple(self._constants[name] for name in names)
            self._compiled = compiled[self._grid]
