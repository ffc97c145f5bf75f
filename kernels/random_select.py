"""Draw exactly k rows of each segment, uniformly, and the same ones on every device.

Row i of a segment draws word i % 4 of Philox-4x32-10 at counter (i // 4, key, stream), keyed by the
seed; the k largest words win, equal ones decided by a second word, then by position. Integers only,
so CPU, interpreter and GPU agree bit for bit, neighbours cannot matter, and the picks for k are
among the picks for k + 1. One launch, one program per segment, words in registers. Traffic: the
offsets in, k row numbers out. With `gather=` the picked rows of other tensors come along
(`_gather_picks.py`). Limits: 16384 rows a segment; "auto" takes the twin beyond.

Seed, stream and keys are read on the device: they may change between replays of a CUDA graph.
"""

from collections.abc import Sequence
from typing import overload

import torch

from . import _gather_picks, reference
from ._checks import (
    check_count,
    check_impl,
    check_segments,
    check_tensor,
    checked_gather,
    checked_keep,
)
from ._gather_picks import copy_picks, my_share
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import (
    COLUMNS,
    kth_largest,
    positions,
    segment_bounds,
    store_picks,
    tile,
    unable,
)
from .gather import gather_rows
from .gather import unable as unable_to_copy
from .ragged import Ragged

_OP = "random_select"


@triton.jit
def _words(seed, key, stream, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD_BITS: tl.constexpr):
    """One Philox word per position: word i % 4 of counter i // 4, its WORD_BITS top bits."""
    counter = positions(ROWS, COLUMNS // 4).to(tl.uint32)
    key_low, key_high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + key_low, zero + key_high, zero + stream)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, COLUMNS])
    return words >> (32 - WORD_BITS) << (32 - WORD_BITS)


@triton.jit
def _drawn(
    seed_ptr,
    keys_ptr,
    stream_ptr,
    segment,
    n,
    k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD_BITS: tl.constexpr,
):
    """The words of a segment above the threshold, and those equal to it in both words."""
    live = positions(ROWS, COLUMNS) < n
    seed, stream = tl.load(seed_ptr), tl.load(stream_ptr).to(tl.uint32)
    key = tl.load(keys_ptr + segment)
    nothing = tl.full((), 0, tl.uint32)
    word = tl.where(live, _words(seed, key, stream, ROWS, COLUMNS, WORD_BITS), nothing)
    threshold, exact = kth_largest(word, k, 32)
    above, equal = (word > threshold) & live, (word == threshold) & live
    if exact == 0:  # by chance n / 2^32: second words choose among the equal ones
        # Drawn before anything else here: in another order the largest tile spills on sm_100.
        other = stream | tl.full((), 0x80000000, tl.uint32)
        second = _words(seed, key, other, ROWS, COLUMNS, WORD_BITS)
        room = k - tl.sum(above.to(tl.int32))
        second = tl.where(equal, second, nothing)
        bound, _ = kth_largest(second, room, 32)
        above = above | (equal & (second > bound))
        equal = equal & (second == bound)
    return above, equal


@triton.jit
def _random_select_kernel(
    # pointers
    cu_seqlens_ptr,
    cu_keep_ptr,
    seed_ptr,
    keys_ptr,
    stream_ptr,
    out_ptr,
    # meta
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD_BITS: tl.constexpr,  # 32; tests leave fewer, so that words tie
):
    """Grid (segments): a program draws the words of its segment and stores its picks."""
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    above, equal = _drawn(seed_ptr, keys_ptr, stream_ptr, segment, n, k, ROWS, COLUMNS, WORD_BITS)
    store_picks(out_ptr + first_out, first + positions(ROWS, COLUMNS), above, equal, k)


@triton.jit(do_not_specialize=["blocks", "strides"])
def _random_gather_kernel(
    # pointers
    seed_ptr,
    keys_ptr,
    stream_ptr,
    cu_seqlens_ptr,
    cu_keep_ptr,
    index_ptr,
    x_ptrs,
    out_ptrs,
    # sizes
    blocks,  # of picks, of the segment that keeps most
    # strides between rows, one per tensor
    strides,
    # meta
    WORD_BITS: tl.constexpr,
    LAYOUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PICKS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Grid (segments x blocks, column spans): a program draws, and copies a block of picks."""
    segment, first, n, first_out, k, pick = my_share(cu_seqlens_ptr, cu_keep_ptr, blocks, PICKS)
    if pick >= k:
        return
    above, equal = _drawn(seed_ptr, keys_ptr, stream_ptr, segment, n, k, ROWS, COLUMNS, WORD_BITS)
    copy_picks(
        index_ptr,
        x_ptrs,
        out_ptrs,
        strides,
        first,
        first_out,
        k,
        pick,
        above,
        equal,
        LAYOUTS,
        ROWS,
        COLUMNS,
        PICKS,
        SPAN,
    )


def _launch(
    cu_seqlens: torch.Tensor,
    seed: torch.Tensor,
    keys: torch.Tensor | None,
    stream: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    word_bits: int = 32,
) -> torch.Tensor:
    kept = Ragged.from_lengths(keep, cu_seqlens.device)
    out = torch.empty(kept.total, dtype=torch.int32, device=cu_seqlens.device)
    if kept.total:
        rows, warps = tile(longest)
        with on_device_of(cu_seqlens):
            _random_select_kernel[(len(kept),)](
                cu_seqlens,
                kept.cu_seqlens,
                seed,
                kept.numbers if keys is None else keys.contiguous(),
                stream,
                out,
                ROWS=rows,
                COLUMNS=COLUMNS,
                WORD_BITS=word_bits,
                num_warps=warps,
                enable_fp_fusion=True,
            )
    return out


def _fake(
    cu_seqlens: torch.Tensor,
    seed: torch.Tensor,
    keys: torch.Tensor | None,
    stream: torch.Tensor,
    keep: Sequence[int],
    longest: int,
) -> torch.Tensor:
    return cu_seqlens.new_empty(sum(keep))


_random_select = register(
    "random_select(Tensor cu_seqlens, Tensor seed, Tensor? keys, Tensor stream, int[] keep, "
    "int longest) -> Tensor",
    _launch,
    _fake,
)


def _launch_gather(
    cu_seqlens: torch.Tensor,
    seed: torch.Tensor,
    keys: torch.Tensor | None,
    stream: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    tensors: Sequence[torch.Tensor],
    word_bits: int = 32,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    kept = Ragged.from_lengths(keep, cu_seqlens.device)
    words = [seed, kept.numbers if keys is None else keys.contiguous(), stream]
    return _gather_picks.launch(
        _random_gather_kernel, words, cu_seqlens, keep, longest, tensors, WORD_BITS=word_bits
    )


def _fake_gather(
    cu_seqlens: torch.Tensor,
    seed: torch.Tensor,
    keys: torch.Tensor | None,
    stream: torch.Tensor,
    keep: Sequence[int],
    longest: int,
    tensors: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return _gather_picks.fake(keep, cu_seqlens, tensors)


_random_gather = register(
    "random_select_gather(Tensor cu_seqlens, Tensor seed, Tensor? keys, Tensor stream, int[] keep, "
    "int longest, Tensor[] tensors) -> (Tensor, Tensor[])",
    _launch_gather,
    _fake_gather,
)


@overload
def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    keys: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    impl: str = "auto",
) -> torch.Tensor: ...


@overload
def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    keys: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    gather: Sequence[torch.Tensor],
    impl: str = "auto",
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]: ...


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    keys: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    gather: Sequence[torch.Tensor] = (),
    impl: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Pick `keep[s]` rows of each segment at random, without replacement.

    Args:
        segments: the cut of the packed batch; its device is where the picks are made.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        seed: int in [-2^63, 2^63), or `[1]` int64 tensor. The same seed repeats the picks. Pass a
            tensor, as for `stream`, where a fill per call matters or a graph is captured.
        keys: `[B]` int64, what identifies each segment (say, a hash of the picture); default its
            position in the call.
        stream: int in [0, 2^31), or `[1]` int32 tensor: separates draws under one seed and key
            (say, the layer).
        gather: tensors `[T, ...]` to gather the picked rows of, as `gather_rows` does: in the same
            launch where no segment has more than 4096 rows, else in a second one.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[sum(keep)]` int32 row numbers of the packed batch, ascending. With `gather` a pair of
        these and a tuple of the picked rows, one contiguous `[sum(keep), ...]` per tensor.

    Raises:
        ValueError: a count, range, shape or device that does not fit, or what the kernel cannot do.
        TypeError: an argument of the wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> random_select(Ragged.from_lengths([576, 9], "cpu"), [58, 9], seed=0, stream=0).shape
    torch.Size([67])
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    keep = checked_keep(_OP, segments, keep)
    _check_word(segments, "seed", seed, torch.int64, -(2**63), 2**63)
    _check_word(segments, "stream", stream, torch.int32, 0, 2**31)
    if keys is not None:
        check_tensor(_OP, "keys", keys, ndim=1, dtypes=(torch.int64,), device=segments.device)
        check_count(_OP, "keys", keys, len(segments))
    gather = checked_gather(_OP, gather, segments)
    longest = segments.max_seqlen
    too_long = unable(longest)
    cannot = too_long or unable_to_copy(gather)
    if not use_triton(_OP, impl, segments.device, unable=cannot, silent=not too_long):
        return reference.random_select(
            segments, keep, seed=seed, keys=keys, stream=stream, gather=gather
        )
    seed = _as_tensor(seed, torch.int64, segments.device)
    stream = _as_tensor(stream, torch.int32, segments.device)
    draw = (segments.cu_seqlens, seed, keys, stream, keep, longest)
    if _gather_picks.fits(longest, gather):
        index, rows = _random_gather(*draw, gather)
        return index, tuple(rows)
    index = _random_select(*draw)
    return (index, gather_rows(index, *gather, impl=impl)) if gather else index


def _as_tensor(value: int | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An int is written by a fill, which never waits for the device."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.full((1,), value, dtype=dtype, device=device)


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
