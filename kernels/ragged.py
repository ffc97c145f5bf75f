"""Say how a packed batch is cut into segments, on the host and on the device at once.

A packed batch holds its segments one after another in dimension 0: segment `s` of a `[T, ...]`
tensor is rows `cu_seqlens[s]:cu_seqlens[s + 1]`. The lengths live on the host, so every output size
is known without asking the device; the prefix sums live on the device for the kernels. Segments may
be empty, and a batch may have none.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch

from ._device_cache import MadeOnce, once_per_stream

_INT32_MAX = 2**31 - 1
_INTS = frozenset((int,))
_NO_SEQUENCES = (torch.Tensor, str)


@dataclass(frozen=True, eq=False)
class Ragged:
    """The cut of a packed batch. Build it with `Ragged.from_lengths`, never by hand.

    lengths: B ints ≥ 0, on the host.
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
        """Build (or fetch: the last 64 are kept) the cut with these segment lengths.

        Never waits for a CUDA device: the copy starts from pinned memory, and the cut is for the
        current stream. Call once before capturing a CUDA graph of it, as ops do with what they
        keep; the graph's cut then stays.

        >>> Ragged.from_lengths([3, 0, 2], "cpu").cu_seqlens.tolist()
        [0, 3, 3, 5]
        """
        return _build(host_ints("lengths", lengths), _indexed_device(device))

    @property
    def total(self) -> int:
        """Rows of the packed batch."""
        return self.offsets[-1]

    @cached_property
    def uniform_length(self) -> int | None:
        """The length all segments share, None if they differ or there are none."""
        return self.max_seqlen if len(set(self.lengths)) == 1 else None

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    def __len__(self) -> int:
        return len(self.lengths)

    @MadeOnce
    def cells(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Segment number and position in its segment of every packed row, int64 `[total]` each."""
        with torch.inference_mode(False), torch.no_grad():
            starts = self.cu_seqlens[:-1].long()
            segment = torch.repeat_interleave(
                torch.arange(len(self), device=self.device),
                self.cu_seqlens.diff().long(),
                output_size=self.total,
            )
            position = torch.arange(self.total, device=self.device) - starts[segment]
        return segment, position

    @MadeOnce
    def numbers(self) -> torch.Tensor:
        """int64 `[B]`: the number of each segment."""
        with torch.inference_mode(False), torch.no_grad():
            return torch.arange(len(self), device=self.device)

    @MadeOnce
    def live(self) -> torch.Tensor:
        """bool `[B, max_seqlen]`: which cells of the padded matrix hold a row."""
        with torch.inference_mode(False), torch.no_grad():
            columns = torch.arange(self.max_seqlen, device=self.device, dtype=torch.int32)
            return columns < self.cu_seqlens.diff()[:, None]

    def pad(self, x: torch.Tensor, fill: float | int) -> torch.Tensor:
        """Spread packed `[total, ...]` rows over `[B, max_seqlen, ...]`, `fill` where none is.

        A view where all lengths are equal.
        """
        if self.uniform_length is not None:
            return x.unflatten(0, (len(self), self.uniform_length))
        padded = x.new_full((len(self), self.max_seqlen, *x.shape[1:]), fill)
        padded[self.cells] = x
        return padded


def host_ints(name: str, values: object) -> tuple[int, ...]:
    """`values` as Python ints. Refuses tensors: reading a device back would stall it."""
    if isinstance(values, _NO_SEQUENCES) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} must be a sequence of host ints, got {type(values).__name__}; pass a list"
        )
    values = tuple(values)
    if _INTS.issuperset(map(type, values)):  # as nearly always, and this is in every call of an op
        return values
    for value in values:
        if isinstance(value, bool | torch.Tensor) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must hold host ints, got {value!r}; pass row counts")
    return tuple(map(operator.index, values))


def _indexed_device(device: torch.device | str | int) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@once_per_stream("segments of lengths")
def _build(lengths: tuple[int, ...], device: torch.device) -> Ragged:
    """Checked when it is built: what is refused is not kept."""
    if min(lengths, default=0) < 0:
        raise ValueError(f"lengths must be >= 0, got {min(lengths)}; pass row counts")
    if sum(lengths) > _INT32_MAX:
        raise ValueError(
            f"lengths sum to {sum(lengths)} rows, more than int32 row numbers reach "
            f"({_INT32_MAX}); split the batch"
        )
    offsets = tuple(accumulate(lengths, initial=0))
    # Cached across calls, so it must not be an inference tensor: autograd refuses to save those.
    with torch.inference_mode(False), torch.no_grad():
        cu_seqlens = torch.tensor(
            offsets, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda"
        ).to(device, non_blocking=True)
    return Ragged(lengths, cu_seqlens, offsets, max(lengths, default=0))
