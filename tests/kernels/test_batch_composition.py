"""The result of a segment does not depend on the other segments of its batch, or their order."""

from collections.abc import Sequence

import pytest
import torch
from ragged_cases import ragged

from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")

# Two have one length, so that some batches are of equal lengths, for which the reference has a path
# of its own; and they are long enough for several tiles of distances and several splits of keys.
LENGTHS = [30, 70, 9, 70, 0]
KEEP = [11, 32, 4, 20, 0]
HASHES = [-5, 2**40, 77, 0, 3]
# Segments join, in front and behind, leave, move, and occur twice.
BATCHES = [(0, 1), (2, 0, 1), (1, 3), (3, 1), (3, 4, 0, 2, 1), (1, 0, 1)]


def own(member: int, *shape: int) -> torch.Tensor:
    """Random inputs of a segment, the same in every batch."""
    generator = torch.Generator().manual_seed(member)
    return torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())


def packed(members: Sequence[int], *width: int) -> torch.Tensor:
    return torch.cat([own(m, LENGTHS[m], *width) for m in members])


def random(members, segments, keep, impl, **options):
    hashes = torch.tensor([HASHES[m] for m in members])
    names = {"seed": 8, "image_hash": hashes, "stream": 20}
    return random_select(segments, keep, **names, **options, impl=impl)


def topk(members, segments, keep, impl):
    return topk_select(packed(members).round(decimals=1), segments, keep, impl=impl)


def diversity(members, segments, keep, impl):
    """In pick order, on rows wide enough for their products to be rounded."""
    x = packed(members, 80)
    return diversity_select(x, segments, keep, return_order=True, impl=impl)[1]


def weighted_diversity(members, segments, keep, impl):
    weights = torch.cat([own(m, LENGTHS[m]) for m in members]).abs()
    options = {"weights": weights, "return_order": True}
    return diversity_select(packed(members, 80), segments, keep, **options, impl=impl)[1]


def determinant(members, segments, keep, impl):
    x, q = packed(members, 80), packed(members)
    return dpp_select(x, q, segments, keep, return_order=True, impl=impl)[1]


def coverage(members, segments, keep, impl):
    x, w = packed(members, 80), packed(members).exp()
    return coverage_select(x, w, segments, keep, return_order=True, impl=impl)[1]


def scores(members, segments, keep, impl):
    q = torch.stack([own(m, 4, 16) for m in members])
    return last_query_scores(q, packed(members, 2, 16), segments, scale=0.25, impl=impl)


def results(select, members, impl):
    """The result of each segment of the batch, with picks counted from its own first row."""
    segments, keep = ragged([LENGTHS[m] for m in members]), [KEEP[m] for m in members]
    got = select(members, segments, keep, impl)
    parts = got.split(list(segments.lengths) if select is scores else keep)
    if got.is_floating_point():
        return parts
    return [part - start for part, start in zip(parts, segments.offsets, strict=False)]


@pytest.mark.parametrize(
    "select",
    [random, topk, diversity, weighted_diversity, determinant, coverage, scores],
    ids=lambda f: f.__name__,
)
def test_result_is_independent_of_batch_composition(impl, select):
    alone = {m: results(select, [m], impl)[0] for m in range(len(LENGTHS))}
    for members in BATCHES:
        for member, got in zip(members, results(select, members, impl), strict=True):
            assert torch.equal(got, alone[member]), (members, member)
