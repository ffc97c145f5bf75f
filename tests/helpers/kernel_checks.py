"""Run the kernel of an op, and compare it with the PyTorch reference and with fp64.

Each function takes the arguments of its op; `check_op` finds the function. What is exact must be
equal bit for bit; floats may err twice as much as the reference does, and a little more.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from parity import (
    TINY,
    Check,
    attention_near,
    best_coverage_each_time,
    exact_last_query_scores,
    exactly,
    farthest_each_time,
    largest_determinant_each_time,
    nearly,
)

from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode


def check_op(op: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Raise AssertionError where the kernel's result is not what the op promises."""
    CHECKS.get(op, check_equal)(op, *arguments, **options)


def _agrees(got: Any, *checks: Check) -> None:
    for check in checks:
        wrong = check(got)
        assert not wrong, wrong


def check_equal(op: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Bit for bit what the reference returns."""
    got, expected = (_flat(op(*arguments, **options, impl=impl)) for impl in ("triton", "eager"))
    _agrees(got, exactly(expected))


def _flat(found: Any) -> list[torch.Tensor]:
    """The tensors of a result: one, several, or an index and the rows gathered, or segments too."""
    found = found.cu_seqlens if isinstance(found, Ragged) else found
    return [found] if isinstance(found, torch.Tensor) else [y for x in found for y in _flat(x)]


def _diversity(
    op: Callable[..., Any], features: Any, segments: Ragged, keep: Any,
    *, weights: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Greedy on fp64 distances up to rounding; the reference's picks where no distance is rounded,
    and so none other than its weighted ones."""
    if segments.max_seqlen <= 4096:  # more take minutes in fp64
        options = {"weights": weights, "return_order": True}
        index, order = op(features, segments, keep, **options, impl="triton")
        assert torch.equal(index, order.sort().values)
        _agrees(order, farthest_each_time(features, segments.lengths, keep, weights=weights))
    check_equal(op, exact_rows(features), segments, keep, weights=weights, return_order=True)


def _by_gain(
    op: Callable[..., Any], features: Any, weights: Any, segments: Ragged, keep: Any
) -> None:
    """As `_diversity`."""
    replay = {dpp_select: largest_determinant_each_time, coverage_select: best_coverage_each_time}
    if segments.max_seqlen <= 2048:  # more take minutes in fp64
        index, order = op(features, weights, segments, keep, return_order=True, impl="triton")
        assert torch.equal(index, order.sort().values)
        _agrees(order, replay[op](features, weights, segments.lengths, keep))
    check_equal(op, exact_rows(features), weights, segments, keep, return_order=True)


def exact_rows(x: torch.Tensor) -> torch.Tensor:
    """-1 or 1 in as many columns as make the norm a power of 2, then 0: all cosines are exact."""
    exact = x.sign().add_(0.5).sign_()
    exact[:, 4 ** ((x.shape[1].bit_length() - 1) // 2) :] = 0
    return exact


def _attention(
    op: Callable[..., Any], q: Any, k: Any, v: Any, q_segments: Ragged, k_segments: Ragged,
    *, causal: bool = True, k_index: torch.Tensor | None = None,
) -> None:  # fmt: skip
    given = (q, k, v, q_segments, k_segments)
    got, plain = (
        op(*given, causal=causal, k_index=k_index, impl=impl) for impl in ("triton", "eager")
    )
    parts = list(zip(_parts(q_segments), _parts(k_segments), strict=True))
    _near(got, plain, q, k, v, parts, causal, k_index)


def _decode(
    op: Callable[..., Any], q: Any, k_cache: Any, v_cache: Any, lengths: Any, *, starts: Any,
    k_index: torch.Tensor | None = None,
) -> None:  # fmt: skip
    options = {"starts": starts, "k_index": k_index}
    got, plain = (
        op(q, k_cache, v_cache, lengths, **options, impl=impl) for impl in ("triton", "eager")
    )
    ranges = zip(*(torch.as_tensor(x).tolist() for x in (starts, lengths)), strict=True)
    parts = [((s, s + 1), (start, start + n)) for s, (start, n) in enumerate(ranges)]
    _near(got, plain, q, k_cache, v_cache, parts, False, k_index)


def _near(
    got: Any, plain: Any, q: Any, k: Any, v: Any, parts: Any, causal: bool, k_index: Any
) -> None:
    """Near fp64 for sampled queries, and near the reference for all."""
    if k_index is not None:
        k, v = k[k_index], v[k_index]
    allowed = 4 * TINY[q.dtype] * max(1.0, plain.abs().max().item())
    _agrees(got, attention_near(q, k, v, parts, causal, plain), nearly(plain.double(), allowed))


def _scores(op: Callable[..., Any], q: Any, k: Any, segments: Ragged, *, scale: float) -> None:
    got, plain = (op(q, k, segments, scale=scale, impl=impl) for impl in ("triton", "eager"))
    exact = exact_last_query_scores(q, k, _parts(segments), scale)
    allowed = 2 * (plain - exact).abs().max().item() + 3e-7
    _agrees(got, nearly(exact, allowed), nearly(plain.double(), allowed))


def _parts(segments: Ragged) -> Sequence[tuple[int, int]]:
    return list(pairwise(segments.cu_seqlens.tolist()))


CHECKS = {
    coverage_select: _by_gain,
    diversity_select: _diversity,
    dpp_select: _by_gain,
    last_query_scores: _scores,
    ragged_attention: _attention,
    ragged_decode: _decode,
}
