"""Draw exactly k rows of each segment, uniformly, and the same ones on every device.

Row i of a segment draws word i % 4 of Philox-4x32-10 at counter (i // 4, image hash, stream), under
the seed as key. The k largest words win; equal words are ordered by a second word, then by
position. All arithmetic is on integers, so CPU, interpreter and GPU agree bit for bit; a segment's
picks depend on that segment alone; and the picks for k are among the picks for k + 1.

One launch, one program per segment, words in registers. Traffic: the offsets in, k row numbers out.
Limits: 16384 rows a segment; "auto" falls back to PyTorch for longer ones.

Seed, stream and image hashes are read on the device: they may change between replays of a CUDA
graph.
"""

import warnings
from collections.abc import Sequence

import torch

from . import _select_numpy, reference
from ._checks import (
    check_count,
    check_impl,
    check_segments,
    check_tensor,
    checked_keep,
    checked_number,
)
from ._device_cache import cached_per_stream
from ._launch import on_device_of, register, tl, triton, use_triton
from ._threshold import (
    COLUMNS,
    kth_largest,
    positions,
    segment_bounds,
    store_picks,
    tile,
    why_unsupported_length,
)
from .ragged import Ragged

_OP = "random_select"


@triton.jit
def _words(seed, hash, stream, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WORD_BITS: tl.constexpr):
    """The highest WORD_BITS of one Philox word per position: word i % 4 of counter i // 4."""
    counter = positions(ROWS, COLUMNS // 4).to(tl.uint32)
    hash_low, hash_high = hash.to(tl.uint32), (hash >> 32).to(tl.uint32)
    zero = counter * 0
    w0, w1, w2, w3 = tl.philox(seed, counter, zero + hash_low, zero + hash_high, zero + stream)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, COLUMNS])
    return words >> (32 - WORD_BITS) << (32 - WORD_BITS)


@triton.jit
def _selected(
    seed_ptr,
    hash_ptr,
    stream_ptr,
    segment,
    n,
    k,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD_BITS: tl.constexpr,
):
    """Masks of the rows of a segment with words above the threshold, and of those equal to it."""
    live = positions(ROWS, COLUMNS) < n
    seed, stream = tl.load(seed_ptr), tl.load(stream_ptr).to(tl.uint32)
    hash = tl.load(hash_ptr + segment)
    nothing = tl.full((), 0, tl.uint32)
    word = tl.where(live, _words(seed, hash, stream, ROWS, COLUMNS, WORD_BITS), nothing)
    threshold, exact = kth_largest(word, k, 32)
    above, equal = (word > threshold) & live, (word == threshold) & live
    if exact == 0:  # with probability about n / 2^32: second words order the equal ones
        # The second words come first: in another order the largest tile spills on sm_100.
        other = stream | tl.full((), 0x80000000, tl.uint32)
        second = _words(seed, hash, other, ROWS, COLUMNS, WORD_BITS)
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
    keys_ptr,  # the image hashes
    stream_ptr,
    out_ptr,
    # meta
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD_BITS: tl.constexpr,  # 32; fewer in tests, so that words tie
):
    """Grid (segments): a program draws the words of its segment and stores its picks."""
    segment = tl.program_id(0)
    first, n = segment_bounds(cu_seqlens_ptr, segment)
    first_out, k = segment_bounds(cu_keep_ptr, segment)
    above, equal = _selected(
        seed_ptr, keys_ptr, stream_ptr, segment, n, k, ROWS, COLUMNS, WORD_BITS
    )
    store_picks(out_ptr + first_out, first + positions(ROWS, COLUMNS), above, equal, k)


def _launch(
    cu_seqlens: torch.Tensor,
    seed: torch.Tensor,
    image_hash: torch.Tensor | None,
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
                kept.numbers if image_hash is None else image_hash.contiguous(),
                stream,
                out,
                ROWS=rows,
                COLUMNS=COLUMNS,
                WORD_BITS=word_bits,
                num_warps=warps,
                enable_fp_fusion=True,
            )
    return out


_random_select = register(
    "random_select(Tensor cu_seqlens, Tensor seed, Tensor? image_hash, Tensor stream, int[] keep, "
    "int longest) -> Tensor",
    _launch,
    lambda cu_seqlens, seed, image_hash, stream, keep, longest: cu_seqlens.new_empty(sum(keep)),
)


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    *,
    seed: int | torch.Tensor,
    image_hash: torch.Tensor | None = None,
    stream: int | torch.Tensor,
    impl: str = "auto",
    keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pick `keep[s]` rows of each segment at random, without replacement.

    Args:
        segments: the segments of the packed batch; the picks are made on their device.
        keep: one host int per segment, 0 ≤ keep[s] ≤ segments.lengths[s].
        seed: int in [-2^63, 2^63), or `[1]` int64 tensor. The same seed repeats the picks. Of the
            ints given, here and for `stream`, the last 64 are kept on the device; pass a tensor to
            change the value between replays of a CUDA graph.
        image_hash: `[B]` int64 that identifies each segment, such as a hash of the picture's
            pixels; default the number of the segment in this call.
        stream: int in [0, 2^31), or `[1]` int32 tensor: separates draws with the same seed and
            image hash, such as those of different layers.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.
        keys: the old name of `image_hash`, deprecated and gone in 0.3.

    Returns:
        `[sum(keep)]` int32 row numbers of the packed batch, ascending.

    Raises:
        ValueError: a count, range, shape or device that does not fit, or impl="triton" for what the
            kernel cannot do.
        TypeError: an argument of the wrong type or dtype, or both `image_hash` and `keys`.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> random_select(Ragged.from_lengths([576, 9], "cpu"), [58, 9], seed=0, stream=0).shape
    torch.Size([67])
    """
    check_impl(_OP, impl)
    if keys is not None:
        if image_hash is not None:
            raise TypeError(f"{_OP}: got image_hash and keys, its old name; pass image_hash only")
        message = f"{_OP}(keys=...) is now image_hash=...; keys= is gone in vtfast 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        image_hash = keys
    check_segments(_OP, "segments", segments)
    keep = checked_keep(_OP, segments, keep)
    seed = checked_number(_OP, "seed", seed, torch.int64, segments.device, -(2**63), 2**63)
    stream = checked_number(_OP, "stream", stream, torch.int32, segments.device, 0, 2**31)
    if image_hash is not None:
        int64 = (torch.int64,)
        check_tensor(_OP, "image_hash", image_hash, ndim=1, dtypes=int64, device=segments.device)
        check_count(_OP, "image_hash", image_hash, len(segments))
    longest = segments.max_seqlen
    why = why_unsupported_length(longest)
    if not use_triton(_OP, impl, segments.device, why_unsupported=why, silent=False):
        if _select_numpy.can_read(segments.cu_seqlens, seed, image_hash, stream):
            return _select_numpy.random_select(segments, keep, seed, image_hash, stream)
        return reference.random_select(
            segments, keep, seed=seed, image_hash=image_hash, stream=stream
        )
    seed = _as_tensor(seed, torch.int64, segments.device)
    stream = _as_tensor(stream, torch.int32, segments.device)
    return _random_select(segments.cu_seqlens, seed, image_hash, stream, keep, longest)


def _as_tensor(value: int | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`value` as a `[1]` tensor; an int is written by a fill, which never waits for the device."""
    if isinstance(value, torch.Tensor):
        return value
    if torch.compiler.is_compiling():
        return torch.full((1,), value, dtype=dtype, device=device)
    return _filled((value, dtype.itemsize), device)


@cached_per_stream("value and bytes of a seed or stream")
def _filled(number: tuple[int, ...], device: torch.device) -> torch.Tensor:
    value, size = number
    dtype = torch.int64 if size == 8 else torch.int32
    with torch.inference_mode(False):  # kept across calls: see `ragged._build`
        return torch.full((1,), value, dtype=dtype, device=device)
