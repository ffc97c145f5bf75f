"""A per-stream cache of small device tensors built from host ints, such as `cu_seqlens`.

Such a tensor is copied to the device without waiting. Only work queued later on the same CUDA
stream may rely on that copy, and the allocator gives the memory back to that stream, so every
stream has its own entries. While a CUDA graph is captured nothing can be copied from the host: the
capture uses an entry that any stream has (`torch.cuda.graph` waits for the device first), and that
entry is then kept for ever, because every replay reads it.
"""

import reprlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Build = Callable[[tuple[int, ...], torch.device], T]
_used_by_graphs: dict[int, Any] = {}


def cached_per_stream(what: str) -> Callable[[Build[T]], Build[T]]:
    """Decorate `build(numbers, device)` to keep its last 64 results, each for one stream.

    what: what the numbers are, for the error raised where the capture of a CUDA graph needs an
    entry that no stream has. A CUDA device must have an index.
    """

    def decorate(build: Build[T]) -> Build[T]:
        streams: set[int] = set()

        @lru_cache(maxsize=64)
        def kept(numbers: tuple[int, ...], device: torch.device, stream: int) -> T:
            if is_captured(device):
                raise LookupError
            streams.add(stream)
            return build(numbers, device)

        def fetch(numbers: tuple[int, ...], device: torch.device) -> T:
            if device.type != "cuda":
                return kept(numbers, device, 0)
            # torch.cuda.current_stream() makes an object: too slow for every call of an op.
            stream = torch._C._cuda_getCurrentRawStream(device.index)
            if not torch.cuda.is_current_stream_capturing():
                return kept(numbers, device, stream)
            for known in (stream, *streams):
                try:
                    found = kept(numbers, device, known)
                except LookupError:
                    continue
                return _used_by_graphs.setdefault(id(found), found)
            raise RuntimeError(
                f"{what} {reprlib.repr(numbers)} are new while a CUDA graph is captured, and a "
                "capture cannot copy them to the device; run the same calls once before capturing"
            )

        return fetch

    return decorate


class GraphSafeCachedProperty(cached_property[T]):
    """A `cached_property` that does not keep a value made while a CUDA graph is captured.

    Such a tensor has no value before the graph is replayed, and its memory belongs to the graph.
    """

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        value = super().__get__(instance, owner)
        if instance is not None and is_captured(instance.device):
            del vars(instance)[self.attrname]
        return value


def is_captured(device: torch.device) -> bool:
    """Whether work queued on the device now is captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
