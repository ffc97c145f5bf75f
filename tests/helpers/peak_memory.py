"""How much memory a call takes beside what it is given and what it returns."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that ops make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        out = func(*args, **(kwargs or {}))
        for x in filter(_is_tensor, tree_leaves(out)):
            storage = x.untyped_storage()
            if storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.live -= size


def _is_tensor(x: object) -> bool:
    return isinstance(x, torch.Tensor)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Bytes that `call` needs at its worst moment, less those of the tensors it returns.

    Counted are the storages of all tensors that PyTorch makes; not the scratch memory inside one op
    of PyTorch, nor what NumPy allocates.
    """
    with _LiveBytes() as counted:
        out = call()
    returned = sum(x.untyped_storage().nbytes() for x in tree_leaves(out) if _is_tensor(x))
    return counted.peak - returned
