"""What a method sees, under the names of 0.2 and, with a warning, under those of 0.1."""

import re

import pytest
import torch
from method_context import context


@pytest.fixture
def ctx():
    return context([[5, (6,), 2], [3, (4,), (2,)]], [3, 2, 1])


def test_features_are_the_hidden_states_of_the_visual_tokens(ctx):
    assert ctx.sequences.visual.tolist() == [*range(5, 11), *range(16, 22)]
    assert torch.equal(ctx.features, ctx.sequences.hidden[ctx.sequences.visual])


def test_segments_of_the_sequences_are_the_samples(ctx):
    assert ctx.sequences.segments.lengths == ctx.sequences.lengths == (13, 9)


@pytest.mark.parametrize(
    ("old", "new", "read"),
    [
        ("ctx.keys", "ctx.image_hash", lambda ctx: (ctx.keys, ctx.image_hash)),
        (
            "ctx.sequences.cut",
            "ctx.sequences.segments",
            lambda ctx: (ctx.sequences.cut, ctx.sequences.segments),
        ),
    ],
    ids=["keys", "cut"],
)
def test_an_old_name_warns_once_and_names_the_new_one(ctx, old, new, read):
    with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is now {new};")) as warned:
        by_old_name, by_new_name = read(ctx)
    assert by_old_name is by_new_name
    assert [warning.filename for warning in warned] == [__file__]


def test_the_old_name_of_the_hash_can_still_be_assigned(ctx):
    with pytest.warns(DeprecationWarning, match=r"ctx\.keys is now ctx\.image_hash"):
        ctx.keys = torch.arange(3)
    assert ctx.image_hash.tolist() == [0, 1, 2]
