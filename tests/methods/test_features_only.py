"""`SelectionContext.of_features`: choosing where there is nothing but pictures."""

import pytest
import torch

import vtfast
from vtfast import InputError
from vtfast.kernels.ragged import Ragged
from vtfast.methods import SelectionContext, method

LENGTHS, KEEP = [12, 20], [5, 8]


@pytest.fixture
def features():
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(0))


def test_methods_choose_as_the_ops_do(features):
    segments = Ragged.from_lengths(LENGTHS, features.device)
    grids = [((1, 3, 4),), ((1, 4, 5),)]
    ctx = SelectionContext.of_features(features, segments, KEEP, parts=grids, seed=3)
    assert ctx.features.equal(features)
    assert ctx.grids == ((1, 3, 4), (1, 4, 5))
    expected = vtfast.ops.diversity_select(features, segments, KEEP)
    assert method("diversity").select(ctx).tolist() == expected.tolist()
    hashes = torch.tensor([0, 1])
    picks = vtfast.ops.random_select(segments, KEEP, seed=3, image_hash=hashes, stream=0)
    assert method("random").select(ctx).tolist() == picks.tolist()


def test_random_picks_follow_the_hashes_that_are_given(features):
    segments = Ragged.from_lengths(LENGTHS, features.device)
    hashes = torch.tensor([77, 78])
    ctx = SelectionContext.of_features(features, segments, KEEP, image_hash=lambda: hashes)
    picks = vtfast.ops.random_select(segments, KEEP, seed=0, image_hash=hashes, stream=0)
    assert method("random").select(ctx).tolist() == picks.tolist()


@pytest.mark.parametrize("name", ["topk", "cdpruner", "visionzip"])
def test_what_is_not_there_cannot_be_read(features, name):
    segments = Ragged.from_lengths(LENGTHS, features.device)
    ctx = SelectionContext.of_features(features, segments, KEEP)
    with pytest.raises(InputError):
        method(name).select(ctx)
