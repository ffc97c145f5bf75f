"""Drop the visual tokens that were not picked from packed sequences; all text stays.

Before a token t there are v visual tokens and, of these, p picked ones. If t stays, its new place
is t - v + p, and so is that of a cut between two sequences at t. The kernel finds v and p of text
and cuts by binary searches in `visual` and `picks`. A pick knows its own: it is visual token number
v and pick number p. Every token that stays then writes itself to its new place.

One launch of independent programs, no atomics: the result depends on no order, nothing is read by
the host. Traffic: about 8 bytes in and out for every token and vector. Not in `vtfast.ops`: the
runtime calls it at every stage that drops tokens.
"""

from collections.abc import Sequence

import torch

from . import reference
from ._checks import (
    INDEX_DTYPES,
    check_covers,
    check_impl,
    check_segments,
    check_tensor,
    checked_ints,
)
from ._launch import cdiv, on_device_of, register, tl, triton, use_triton
from .ragged import Ragged

_OP = "compact"
_BLOCK = 128  # tokens of a program, one a thread: with more, values change threads before a store
_WARPS = 4  #    (27 barriers at 256 tokens, none here)


@triton.jit
def _count_below(numbers_ptr, n, highest, x):
    """How many of n ascending numbers are below each x; highest: the largest power of two ≤ n."""
    count, bit = tl.zeros_like(x), highest
    while bit > 0:  # a bit of the count is set if all numbers up to there are below
        reach = count + bit
        inside = reach <= n
        number = tl.load(numbers_ptr + reach - 1, mask=inside, other=0)
        count = tl.where(inside & (number < x), reach, count)
        bit >>= 1
    return count


@triton.jit
def _write(stay_ptr, x_ptrs, out_ptrs, token, place, mask):
    """Write tokens, and what the vectors say of them, to their new places."""
    tl.store(stay_ptr + place, token, mask=mask)
    for t in tl.static_range(len(x_ptrs)):
        x = tl.load(x_ptrs[t] + token, mask=mask, other=0)
        tl.store(out_ptrs[t] + place, x, mask=mask)


@triton.jit(
    do_not_specialize=["num_picks", "num_visual", "total", "num_cuts", "top_pick", "top_visual"]
)
def _compact_kernel(
    # pointers: arguments; results; the vectors of `places`, and what stays of them
    picks_ptr,
    visual_ptr,
    cu_seqlens_ptr,
    stay_ptr,
    kept_ptr,
    now_ptr,
    cu_after_ptr,
    x_ptrs,
    out_ptrs,
    # sizes, and the largest powers of two that are not above the first two
    num_picks,
    num_visual,
    total,
    num_cuts,
    top_pick,
    top_visual,
    # meta
    BLOCK: tl.constexpr,
):
    """Grid (blocks of the tokens and, after them, the cuts): a program places the text and the cuts
    of its block, and the picks with these numbers."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)

    picked = i < num_picks
    number = tl.load(picks_ptr + i, mask=picked, other=0).to(tl.int64)
    token = tl.load(visual_ptr + number, mask=picked, other=0)
    place = token - number + i
    tl.store(kept_ptr + i, token, mask=picked)
    tl.store(now_ptr + i, place, mask=picked)
    _write(stay_ptr, x_ptrs, out_ptrs, token, place, picked)

    is_cut = (i >= total) & (i < total + num_cuts)
    cut = tl.load(cu_seqlens_ptr + i - total, mask=is_cut, other=0).to(tl.int64)
    token = tl.where(is_cut, cut, i)
    before = _count_below(visual_ptr, num_visual, top_visual, token)
    place = token - before + _count_below(picks_ptr, num_picks, top_pick, before)
    tl.store(cu_after_ptr + i - total, place.to(tl.int32), mask=is_cut)
    following = tl.load(visual_ptr + before, mask=before < num_visual, other=-1)
    _write(stay_ptr, x_ptrs, out_ptrs, token, place, (i < total) & (following != token))


def _launch(
    picks: torch.Tensor,
    visual: torch.Tensor,
    cu_seqlens: torch.Tensor,
    total: int,
    places: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    device, after = visual.device, total - len(visual) + len(picks)
    sizes = len(picks), len(picks), after, *[after] * len(places)
    kept, now, stay, *outputs = (torch.empty(n, dtype=torch.int64, device=device) for n in sizes)
    cuts = torch.empty(len(cu_seqlens), dtype=torch.int32, device=device)
    with on_device_of(visual):
        _compact_kernel[(cdiv(total + len(cuts), _BLOCK),)](
            picks.contiguous(),
            visual.contiguous(),
            cu_seqlens,
            stay,
            kept,
            now,
            cuts,
            tuple(x.contiguous() for x in places),
            tuple(outputs),
            len(picks),
            len(visual),
            total,
            len(cuts),
            _highest_bit(len(picks)),
            _highest_bit(len(visual)),
            BLOCK=_BLOCK,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return stay, kept, now, cuts, outputs


def _highest_bit(n: int) -> int:
    """The largest power of two ≤ n; 0 for 0."""
    return 1 << n.bit_length() >> 1


def _fake(
    picks: torch.Tensor,
    visual: torch.Tensor,
    cu_seqlens: torch.Tensor,
    total: int,
    places: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    picked, after = picks.shape[0], total - visual.shape[0] + picks.shape[0]
    sizes = picked, picked, after, *[after] * len(places)
    kept, now, stay, *outputs = map(visual.new_empty, sizes)
    return stay, kept, now, torch.empty_like(cu_seqlens), outputs


_compact = register(
    "compact(Tensor picks, Tensor visual, Tensor cu_seqlens, int total, Tensor[] places)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _launch,
    _fake,
)


def compact(
    picks: torch.Tensor,
    visual: torch.Tensor,
    segments: Ragged,
    lengths: Sequence[int],
    places: Sequence[torch.Tensor | None] = (),
    *,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Ragged, tuple[torch.Tensor, ...]]:
    """Find which tokens of packed sequences stay, and where, when only picked visual tokens do.

    Args:
        picks: `[K]` int32|int64, ascending: numbers into `visual` of the tokens to keep.
        visual: `[n]` int64, ascending: which of the T packed tokens are visual.
        segments: which of the T tokens form which sequence.
        lengths: tokens of each sequence that stay, host ints; T - n + K in all. On a CUDA device it
            is not checked that picks and lengths agree.
        places: vectors `[T]` int64, or None for 0, 1, …, T - 1.
        impl: "auto" (Triton on CUDA tensors, eager elsewhere) | "eager" | "triton"; an explicit
            choice never falls back.

    Returns:
        stay: `[T - n + K]` int64, ascending: the tokens that stay.
        kept: `[K]` int64: the picked tokens, `visual[picks]`.
        now: `[K]` int64: their numbers among those that stay.
        segments: which of those that stay form which sequence; the kernel computes its cuts, so
            nothing is copied to the device.
        places: `x[stay]` of each vector.

    Raises:
        ValueError: a rank, size or device that does not fit.
        TypeError: an argument of the wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> two = Ragged.from_lengths([4, 3], "cpu")
    >>> stay, *_ = compact(torch.tensor([0, 2]), torch.tensor([1, 2, 5]), two, [3, 3])
    >>> stay.tolist()
    [0, 1, 3, 4, 5, 6]
    """
    check_impl(_OP, impl)
    check_segments(_OP, "segments", segments)
    device = segments.device
    check_tensor(_OP, "picks", picks, ndim=1, dtypes=INDEX_DTYPES, device=device)
    check_tensor(_OP, "visual", visual, ndim=1, dtypes=(torch.int64,), device=device)
    lengths = checked_ints(_OP, "lengths", lengths, len(segments))
    after = segments.total - len(visual) + len(picks)
    if sum(lengths) != after:
        raise ValueError(
            f"{_OP}: lengths sum to {sum(lengths)}, but of {segments.total} tokens, {len(visual)} "
            f"of them visual, {after} stay with {len(picks)} picks; they must agree"
        )
    vectors = [x for x in places if x is not None]
    for number, x in enumerate(vectors):
        name = f"places[{number}]"
        check_tensor(_OP, name, x, ndim=1, dtypes=(torch.int64,), device=device)
        check_covers(_OP, "segments", segments, name, len(x))
    if not use_triton(_OP, impl, device):
        return reference.compact(picks, visual, segments, lengths, places)
    arguments = (picks, visual, segments.cu_seqlens, segments.total, vectors)
    stay, kept, now, cuts, outputs = _compact(*arguments)
    found = iter(outputs)
    then = tuple(stay if x is None else next(found) for x in places)
    return stay, kept, now, Ragged.of(lengths, cuts), then
