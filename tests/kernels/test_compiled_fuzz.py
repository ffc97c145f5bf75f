"""Ten thousand random segments for each selection, through compiled kernels (on sm_80 a tenth).

Executed as PTX on a CPU by `make test-ptx`. A case is a segment, and a program of the kernel; a
launch has hundreds of them. Their picks must be those of the PyTorch reference.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from devices import ARCH
from kernel_checks import check_equal
from ptx_driver import settings

from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

assert ARCH, "set VTFAST_TEST_DEVICE to sm_80 or sm_90"
pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = 10_000 if ARCH == "sm_90" else 1_000
NAN, INF = float("nan"), float("inf")
SCORES = torch.tensor([0.0, -0.0, NAN, -NAN, INF, -INF, 1.0, -1.5, 2**-14, -(2**-14), 65504.0])
# Their cosines are multiples of 1/4: opposites, rows that count as zero, rows that are not finite.
ROWS = torch.cat(
    [
        torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4),
        torch.eye(4),
        -torch.eye(4),
        torch.tensor([[0.0] * 4, [0.0] * 4, [1e-30, 0.0, -1e-30, 0.0]]),
        torch.tensor([[NAN] * 4, [1e30] * 4, [0.0, INF, 0.0, 0.0], [1.0, 2.0, NAN, 0.0]]),
    ]
)
FACTORS = torch.tensor([0.0, -0.0, 0.25, 0.3, 1.0, 1.0, 1.7, 4.0, 3e38, NAN, INF, -INF, -2.0])
WEIGHTS = torch.tensor([0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0, NAN, INF, -0.0, 1e-34])


class Batch(NamedTuple):
    segments: Ragged
    keep: list[int]
    dtype: torch.dtype
    draw: torch.Generator


def batches(most: int, edges: tuple[int, ...]) -> Iterator[Batch]:
    """At least `CASES` segments of up to `most` rows, and in every tenth batch of one of `edges`.

    Every third segment keeps no row, one or all.
    """
    draw, tried, number = random.Random(0), 0, 0
    while tried < CASES:
        at_edges = number % 10 == 9
        size = 40 if at_edges else 400
        lengths = [draw.choice(edges) if at_edges else draw.randint(0, most) for _ in range(size)]
        keep = [draw.choice((0, n, min(n, 1), *[draw.randint(0, n)] * 6)) for n in lengths]
        dtype, numbers = KERNEL_DTYPES[number % 3], torch.Generator().manual_seed(number)
        yield Batch(Ragged.from_lengths(lengths, "cpu"), keep, dtype, numbers)
        tried, number = tried + size, number + 1


@pytest.fixture
def fuzzed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collects the sizes of batches, whose sum must be that promised.

    One order a launch: segments never meet, and any access to another's memory is a fault.
    """
    monkeypatch.setattr(settings, "orders", 1)
    sizes: list[int] = []
    yield sizes
    assert sum(sizes) >= CASES


def test_topk_among_ties_nan_and_zeros_of_both_signs(fuzzed: list[int]) -> None:
    for segments, keep, dtype, draw in batches(70, (1023, 1024, 1025)):
        scores = torch.randn(segments.total, generator=draw).mul(4).round().div(4)
        special = torch.randint(2 * len(SCORES), (segments.total,), generator=draw)
        scores = torch.where(special < len(SCORES), SCORES[special % len(SCORES)], scores)
        check_equal(topk_select, scores.to(dtype), segments, keep)
        fuzzed.append(len(segments))


def test_random_under_any_seed_stream_and_hash(fuzzed: list[int]) -> None:
    for segments, keep, _, draw in batches(70, (1023, 1024, 1025)):
        hashes = torch.empty(len(segments), dtype=torch.int64)
        seed, stream = torch.empty(1, dtype=torch.int64), torch.empty(1, dtype=torch.int32)
        for numbers in (hashes, seed):
            numbers.random_(-(2**63), None, generator=draw)
        stream.random_(0, 2**31 - 1, generator=draw)
        words = {"image_hash": hashes, "seed": seed, "stream": stream}
        check_equal(random_select, segments, keep, **words)
        fuzzed.append(len(segments))


def test_diversity_among_copies_zero_rows_and_rows_that_are_not_finite(fuzzed: list[int]) -> None:
    """Every second batch is weighted; some weights are none."""
    for number, (segments, keep, dtype, draw) in enumerate(batches(24, (63, 64, 65, 129))):
        which = torch.randint(len(ROWS), (segments.total,), generator=draw)
        scale = 2.0 ** torch.randint(-1, 7, (segments.total, 1), generator=draw)
        features = (ROWS[which] * scale).to(dtype)
        weights = FACTORS[torch.randint(len(FACTORS), (segments.total,), generator=draw)]
        options = {"weights": weights if number % 2 else None, "return_order": True}
        check_equal(diversity_select, features, segments, keep, **options)
        fuzzed.append(len(segments))


@pytest.mark.parametrize("op", [dpp_select, coverage_select])
def test_gains_among_copies_and_weights_that_are_not_finite(op, fuzzed: list[int]) -> None:
    for segments, keep, dtype, draw in batches(16, (31, 32, 33, 65)):
        features = ROWS[torch.randint(len(ROWS), (segments.total,), generator=draw)].to(dtype)
        weights = WEIGHTS[torch.randint(len(WEIGHTS), (segments.total,), generator=draw)]
        check_equal(op, features, weights, segments, keep, return_order=True)
        fuzzed.append(len(segments))
