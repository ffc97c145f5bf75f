"""`Ragged`: the segment lengths of a packed batch, on the host and as prefix sums on the device.

A packed batch holds its segments one after another in dimension 0, without padding: segment `s` of
a `[T, ...]` tensor is rows `cu_seqlens[s]:cu_seqlens[s + 1]`. The lengths are on the host, so every
output size is known without a read from the device; the prefix sums are on the device for the
kernels. Segments may be empty, and a batch may have none.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch

from ._device_cache import GraphSafeCachedProperty, cached_per_stream
from ._numpy import HAS_NUMPY, np

_INT32_MAX = 2**31 - 1
_INTS = frozenset((int,))
_REFUSED_ITERABLES = (torch.Tensor, str)
_NO_HOST_INTS = (bool, torch.Tensor, *((np.bool_, np.ndarray) if HAS_NUMPY else ()))


@dataclass(frozen=True, eq=False)
class Ragged:
    """Which rows of a packed batch form which segment. Build it with `Ragged.from_lengths`.

    Attributes:
        lengths: rows of each of the B segments, host ints ≥ 0.
        cu_seqlens: `[B + 1]` int32 on the device, prefix sums of `lengths` from 0.
        offsets: the same prefix sums as host ints.
        max_seqlen: rows of the longest segment, 0 without segments.
    """

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor = field(repr=False)
    offsets: tuple[int, ...] = field(repr=False)
    max_seqlen: int = field(repr=False)

    @staticmethod
    def from_lengths(lengths: Sequence[int], device: torch.device | str | int) -> "Ragged":
        """Build the `Ragged` of these segment lengths, or return it from a cache of the last 64.

        Never waits for a CUDA device: the copy starts from pinned memory, and the result is for the
        current stream. New lengths cannot be built while a CUDA graph is captured: call this, and
        the ops that use it, once before the capture.

        Raises TypeError for lengths that are not host ints, ValueError for a negative length or
        2^31 rows or more, RuntimeError for new lengths during a capture.

        >>> Ragged.from_lengths([3, 0, 2], "cpu").cu_seqlens.tolist()
        [0, 3, 3, 5]
        """
        return _build(host_ints("lengths", lengths), _indexed_device(device))

    @staticmethod
    def of(lengths: tuple[int, ...], cu_seqlens: torch.Tensor) -> "Ragged":
        """The `Ragged` of prefix sums that a kernel has made; nothing is copied or checked."""
        offsets = tuple(accumulate(lengths, initial=0))
        return Ragged(lengths, cu_seqlens, offsets, max(lengths, default=0))

    @property
    def total(self) -> int:
        """Rows of the packed batch."""
        return self.offsets[-1]

    @cached_property
    def uniform_length(self) -> int | None:
        """The length that all segments have; None if they differ or there is no segment."""
        return self.max_seqlen if len(set(self.lengths)) == 1 else None

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    def __len__(self) -> int:
        return len(self.lengths)

    @GraphSafeCachedProperty
    def cells(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment of every packed row, and its position in that segment: int64 `[total]` each."""
        with torch.inference_mode(False), torch.no_grad():
            starts = self.cu_seqlens[:-1].long()
            segment = torch.repeat_interleave(
                torch.arange(len(self), device=self.device),
                self.cu_seqlens.diff().long(),
                output_size=self.total,
            )
            position = torch.arange(self.total, device=self.device) - starts[segment]
        return segment, position

    @GraphSafeCachedProperty
    def numbers(self) -> torch.Tensor:
        """int64 `[B]`: 0, 1, …, B - 1, the number of each segment."""
        with torch.inference_mode(False), torch.no_grad():
            return torch.arange(len(self), device=self.device)

    @GraphSafeCachedProperty
    def live(self) -> torch.Tensor:
        """bool `[B, max_seqlen]`: False where the padded batch of `pad` has padding."""
        with torch.inference_mode(False), torch.no_grad():
            columns = torch.arange(self.max_seqlen, device=self.device, dtype=torch.int32)
            return columns < self.cu_seqlens.diff()[:, None]

    def pad(self, x: torch.Tensor, fill: float | int) -> torch.Tensor:
        """Turn packed `[total, ...]` into `[B, max_seqlen, ...]`, padded on the right with `fill`.

        Returns a view if all lengths are equal.
        """
        if self.uniform_length is not None:
            return x.unflatten(0, (len(self), self.uniform_length))
        padded = x.new_full((len(self), self.max_seqlen, *x.shape[1:]), fill)
        padded[self.cells] = x
        return padded


def host_ints(name: str, values: object) -> tuple[int, ...]:
    """`values` as a tuple of Python ints. Refuses tensors: reading them would stall the device."""
    if isinstance(values, _REFUSED_ITERABLES) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} must be a sequence of host ints, got {type(values).__name__}; pass a list"
        )
    values = tuple(values)
    if _INTS.issuperset(map(type, values)):  # the usual case, in every call of an op
        return values
    for value in values:
        if not is_host_int(value):
            raise TypeError(f"{name} must hold host ints, got {value!r}; pass row counts")
    return tuple(map(operator.index, values))


def is_host_int(value: object) -> bool:
    """Whether this is a Python or NumPy integer; not a bool, nor a tensor, which would be read."""
    return hasattr(value, "__index__") and not isinstance(value, _NO_HOST_INTS)


def _indexed_device(device: torch.device | str | int) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@cached_per_stream("segments of lengths")
def _build(lengths: tuple[int, ...], device: torch.device) -> Ragged:
    """Check the lengths here and not in `from_lengths`, so that a cached call need not."""
    if min(lengths, default=0) < 0:
        raise ValueError(f"lengths must be >= 0, got {min(lengths)}; pass row counts")
    if sum(lengths) > _INT32_MAX:
        raise ValueError(
            f"lengths sum to {sum(lengths)} rows, more than int32 row numbers reach "
            f"({_INT32_MAX}); split the batch"
        )
    # Cached across calls, so it must not be an inference tensor: autograd refuses to save those.
    with torch.inference_mode(False), torch.no_grad():
        cu_seqlens = torch.tensor(
            [*accumulate(lengths, initial=0)],
            dtype=torch.int32,
            device="cpu",
            pin_memory=device.type == "cuda",
        ).to(device, non_blocking=True)
    return Ragged.of(lengths, cu_seqlens)
