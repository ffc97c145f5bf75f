"""Keep on the device what was made of host ints, for later calls with the same ones.

A copy that nobody waits for is there for what follows on its own CUDA stream, and its memory goes
back to that stream; so every stream gets things of its own. A CUDA graph is captured on yet another
stream and cannot copy from the host: it takes what any stream has (`torch.cuda.graph` waits for the
device first), and what it took is kept for good, since replays read it.
"""

import reprlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Build = Callable[[tuple[int, ...], torch.device], T]
_captured: dict[int, Any] = {}


def once_per_stream(what: str) -> Callable[[Build[T]], Build[T]]:
    """Decorate `build(numbers, device)`: the last 64 results are kept, for one stream each.

    what: the numbers in words, for the error where a graph needs what is not there. The device
    comes with its index.
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
            # The public way makes an object, and this is in every call of an op.
            stream = torch._C._cuda_getCurrentRawStream(device.index)
            if not torch.cuda.is_current_stream_capturing():
                return kept(numbers, device, stream)
            for known in (stream, *streams):
                try:
                    found = kept(numbers, device, known)
                except LookupError:
                    continue
                return _captured.setdefault(id(found), found)
            raise RuntimeError(
                f"{what} {reprlib.repr(numbers)} are new while a CUDA graph is captured, which "
                "cannot copy them to the device; run the same calls once before capturing"
            )

        return fetch

    return decorate


class MadeOnce(cached_property[T]):
    """A `cached_property`, but what is made while a CUDA graph is captured stays the graph's: it
    has no value before a replay, and its memory is not its own after one."""

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        value = super().__get__(instance, owner)
        if instance is not None and is_captured(instance.device):
            del vars(instance)[self.attrname]
        return value


def is_captured(device: torch.device) -> bool:
    """Whether what is done on the device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
