"""Draw exactly k rows of each segment, uniformly, and the same ones on every device.

Each row draws a Philox-4x32-10 word from (seed, key of its segment, stream, its position); the k
largest words win. Integer arithmetic only, so CPU and GPU agree bit for bit, neighbours cannot
matter, and the picks for k are among the picks for k + 1.
"""

from collections.abc import Sequence

import torch

from . import reference
from .checks import check_count, check_impl, check_segments, check_tensor, checked_keep
from .ragged import Ragged

_OP = "random_select"


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    keys: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    impl: str = "auto",
) -> torch.Tensor:
    """Pick `keep[s]` rows of each segment at random, without replacement.

    Args:
        segments: the cut of the packed batch; its device is where the picks are made.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        seed: int in [-2^63, 2^63), or `[1]` int64 tensor. The same seed repeats the picks.
        keys: `[B]` int64, what identifies each segment (say, a hash of the picture); default its
            position in the call.
        stream: int in [0, 2^31), or `[1]` int32 tensor: separates draws under one seed and key
            (say, the layer).
        impl: "auto" | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers of the packed batch, ascending.

    Raises:
        ValueError: a count, range, shape or device that does not fit.
        TypeError: an argument of the wrong type or dtype.

    >>> random_select(Ragged.from_lengths([576, 9], "cpu"), [58, 9], seed=0, stream=0).shape
    torch.Size([67])
    """
    check_impl(_OP, impl, has_kernel=False)
    check_segments(_OP, "segments", segments)
    keep = checked_keep(_OP, segments, keep)
    _check_word(segments, "seed", seed, torch.int64, -(2**63), 2**63)
    _check_word(segments, "stream", stream, torch.int32, 0, 2**31)
    if keys is not None:
        check_tensor(_OP, "keys", keys, ndim=1, dtypes=(torch.int64,), device=segments.device)
        check_count(_OP, "keys", keys, len(segments))
    return reference.random_select(segments, keep, seed=seed, keys=keys, stream=stream)


def _check_word(
    segments: Ragged, name: str, value: int | torch.Tensor, dtype: torch.dtype, low: int, high: int
) -> None:
    if isinstance(value, torch.Tensor):
        check_tensor(_OP, name, value, ndim=1, dtypes=(dtype,), device=segments.device)
        if len(value) != 1:
            raise ValueError(f"{_OP}: {name} must hold one number, got shape {tuple(value.shape)}")
    elif isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_OP}: {name} must be an int or a tensor, got {type(value).__name__}")
    elif not low <= value < high:
        raise ValueError(f"{_OP}: {name}={value} is out of range; pass {low} <= {name} < {high}")
