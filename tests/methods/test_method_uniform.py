"""Uniform: evenly spaced tokens of a grid, exact for every number."""

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from method_context import context, picks
from model_readings import evenly_spaced

from vtfast.methods.uniform import evenly, uniform

SIDES = st.integers(1, 12)


@examples(200)
@given(grid=st.tuples(st.integers(1, 4), SIDES, SIDES), data=st.data())
def test_uniform_agrees_with_plain_loops_and_is_exact(grid, data):
    n = grid[0] * grid[1] * grid[2]
    keep = data.draw(st.integers(0, n))
    places = list(evenly(grid, keep))
    assert places == evenly_spaced(n, keep, grid)
    assert len(places) == keep
    assert places == sorted(set(places))
    assert all(0 <= place < n for place in places)


def test_uniform_is_exact_in_long_strips():
    """Where rounding the number of rows down would leave too few places."""
    for height, width in ((2, 12), (3, 40), (12, 2), (1, 9)):
        for keep in range(height * width + 1):
            assert len(set(evenly((1, height, width), keep))) == keep


def test_a_quarter_of_a_square_is_every_other_row_and_column():
    assert evenly((1, 24, 24), 144) == tuple(
        24 * row + column for row in range(1, 24, 2) for column in range(1, 24, 2)
    )


@pytest.mark.parametrize("grid", [(1, 24, 24), (1, 8, 16), (1, 17, 15)])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_no_place_is_far_from_a_kept_one(grid, share):
    """At most half a step of the grid in rows and in columns, and one for rounding."""
    _, height, width = grid
    keep = max(1, int(share * height * width))
    kept = torch.tensor([divmod(place, width) for place in evenly(grid, keep)]).float()
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    step = (height * width / keep) ** 0.5
    assert torch.cdist(places, kept, p=float("inf")).min(1).values.max() <= step / 2 + 2


def test_all_frames_of_a_clip_get_their_share():
    counts = torch.tensor(evenly((4, 6, 6), 22)).div(36, rounding_mode="floor").bincount()
    assert sorted(counts.tolist()) == [5, 5, 6, 6]
    assert evenly((5, 1, 1), 2) == (1, 3)


def test_every_picture_has_its_own_grid():
    ctx = context(
        [[3, (16,), 2], [(12,), (10,), 4]], [4, 3, 5], grids=[(1, 4, 4), (1, 3, 4), (1, 2, 5)]
    )
    grids = zip(ctx.segments.lengths, ctx.keep, ctx.grids, strict=True)
    assert picks(uniform(ctx), ctx) == [evenly_spaced(n, k, grid) for n, k, grid in grids]


@pytest.mark.parametrize("grid", [(1, 6, 6), (1, 0, 0), (0, 0, 0)], ids=["pruned", "image", "clip"])
def test_what_is_no_grid_is_read_as_one_row(grid):
    ctx = context([[3, (20,), 2]], [4], grids=[grid])
    assert picks(uniform(ctx), ctx) == [[2, 7, 12, 17]]
