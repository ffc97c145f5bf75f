"""A segment gets the same result alone, in a batch, and in another batch at another place."""

from collections.abc import Sequence

import pytest
import torch
from ragged_cases import cut

from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")

# Two of one length, so that some batches are of equal lengths, which the twins do in another way,
# and long enough for several tiles of distances and several splits of keys.
LENGTHS = [30, 130, 9, 130, 0]
KEEP = [11, 32, 4, 20, 0]
KEYS = [-5, 2**40, 77, 0, 3]
# Somebody joins, in front and behind, leaves, and moves; one of them twice.
BATCHES = [(0, 1), (2, 0, 1), (1, 3), (3, 1), (3, 4, 0, 2, 1), (1, 0, 1)]


def own(member: int, *shape: int) -> torch.Tensor:
    """What a segment brings along."""
    generator = torch.Generator().manual_seed(member)
    return torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())


def packed(members: Sequence[int], *width: int) -> torch.Tensor:
    return torch.cat([own(m, LENGTHS[m], *width) for m in members])


def random(members, segments, keep, impl):
    keys = torch.tensor([KEYS[m] for m in members])
    return random_select(segments, keep, seed=8, keys=keys, stream=20, impl=impl)


def random_gather(members, segments, keep, impl):
    keys = torch.tensor([KEYS[m] for m in members])
    x = packed(members, 3)
    return random_select(segments, keep, seed=8, keys=keys, stream=20, gather=[x], impl=impl)[1][0]


def topk(members, segments, keep, impl):
    return topk_select(packed(members).round(decimals=1), segments, keep, impl=impl)


def topk_gather(members, segments, keep, impl):
    x, scores = packed(members, 3), packed(members).round(decimals=1)
    return topk_select(scores, segments, keep, gather=[x], impl=impl)[1][0]


def diversity(members, segments, keep, impl):
    """In pick order, on rows wide enough for their products to round."""
    x = packed(members, 256)
    return diversity_select(x, segments, keep, return_order=True, impl=impl)[1]


def scores(members, segments, keep, impl):
    q = torch.stack([own(m, 4, 16) for m in members])
    return last_query_scores(q, packed(members, 2, 16), segments, scale=0.25, impl=impl)


def results(select, members, impl):
    """What each member gets, its picks counted from its own first row."""
    segments, keep = cut([LENGTHS[m] for m in members]), [KEEP[m] for m in members]
    got = select(members, segments, keep, impl)
    parts = got.split(list(segments.lengths) if select is scores else keep)
    if got.is_floating_point():
        return parts
    return [part - start for part, start in zip(parts, segments.offsets, strict=False)]


@pytest.mark.parametrize(
    "select",
    [random, random_gather, topk, topk_gather, diversity, scores],
    ids=lambda f: f.__name__,
)
def test_a_segment_fares_the_same_in_any_company(impl, select):
    alone = {m: results(select, [m], impl)[0] for m in range(len(LENGTHS))}
    for members in BATCHES:
        for member, got in zip(members, results(select, members, impl), strict=True):
            assert torch.equal(got, alone[member]), (members, member)
