"""`coverage_select`: greedy picks by weighted coverage, k distinct rows always."""

import sys

import numpy as np
import pytest
import torch
from diversity_cases import INF, NAN, clusters
from gain_cases import order_of, weights_of
from parity import best_coverage_each_time
from peak_memory import extra_bytes
from ragged_cases import ragged

from vtfast.kernels.coverage_select import coverage_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
module = sys.modules[coverage_select.__module__]


def seeded():
    return torch.Generator().manual_seed(0)


def order(features, weights, k, impl="auto"):
    return order_of(coverage_select, features, weights, k, impl).tolist()


def test_every_pick_has_the_largest_gain_when_all_weights_are_one():
    """More rows are evaluated at a step then than at a time."""
    features, weights = torch.randn(300, 256, generator=seeded()), torch.ones(300)
    picks = order_of(coverage_select, features, weights, 150)
    assert not best_coverage_each_time(features, weights, [300], [150])(picks)


def test_the_replay_finds_a_pick_that_is_not_the_largest():
    features, weights = clusters(40, 64), weights_of(40)
    picks = order_of(coverage_select, features, weights, 20)
    picks[[1, 12]] = picks[[12, 1]]
    assert "pick 1 gains" in best_coverage_each_time(features, weights, [40], [20])(picks)


def test_few_rows_are_evaluated_after_the_first_pick(monkeypatch):
    """Otherwise a step would cost n lines of the matrix, 400 of these."""
    evaluated, take = [], np.take
    monkeypatch.setattr(np, "take", lambda *x, **o: (evaluated.append(len(x[1])), take(*x, **o))[1])
    order(clusters(400, 64), weights_of(400), 100)
    assert sum(evaluated) - 400 < 100 * 40


def test_starts_with_the_row_that_is_most_like_all(impl):
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, -1.0]])
    assert order(rows, torch.ones(4), 1, impl) == [1]
    assert order(rows, torch.tensor([1.0, 1.0, 1.0, 4.0]), 1, impl) == [3]


def test_then_covers_what_is_not_covered(impl):
    """Rows 0 and 1 have larger sums than row 3 at first, but are like row 2."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    assert order(rows, torch.ones(4), 3, impl) == [2, 3, 0]


def test_opposite_rows_do_not_cover_one_another(impl):
    """A cosine below 0 neither adds to a gain nor takes from it."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert order(rows, torch.ones(3), 3, impl) == [1, 0, 2]


def test_nearly_equal_gains_go_to_the_lowest_row(impl):
    """Within 2^-17 of the largest; further apart the larger one is picked."""
    near, far = 1 + 2.0**-18, 1 + 2.0**-14
    assert order(torch.eye(3), torch.tensor([1.0, near, 1.0]), 3, impl) == [0, 1, 2]
    assert order(torch.eye(3), torch.tensor([1.0, far, 1.0]), 3, impl) == [1, 0, 2]


def test_copies_of_picked_rows_have_no_gain_though_rounded(impl):
    """Without a limit they would have 1e-7 of it, in an order that depends on the device."""
    features = clusters(12, 48)
    picks = order(torch.cat([features, features[:5]]), weights_of(17).clamp(min=0.1), 17, impl)
    assert {row if row < 12 else row - 12 for row in picks[:12]} == {*range(12)}
    assert picks[12:] == sorted(picks[12:])


def test_where_no_row_has_a_gain_the_lowest_ones_are_picked(impl):
    assert order(torch.ones(6, 3), torch.ones(6), 6, impl) == [0, 1, 2, 3, 4, 5]
    assert order(clusters(5), torch.zeros(5), 5, impl) == [0, 1, 2, 3, 4]
    assert order(clusters(5), -torch.ones(5), 5, impl) == [0, 1, 2, 3, 4]


def test_only_directions_matter(impl):
    features, weights = clusters(40, 48), weights_of(40)
    scaled = features * 2.0 ** torch.arange(-20, 20)[:, None]
    assert order(scaled, weights, 20, impl) == order(features, weights, 20, impl)


def test_a_zero_row_covers_nothing_and_cannot_be_covered(impl):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-30, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([9.0, 1.0, 9.0, 1.0]), 4, impl) == [1, 3, 0, 2]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e30])
def test_rows_that_are_not_finite_come_last_and_change_nothing(impl, broken):
    finite, weights = clusters(12, 48), weights_of(12)
    features = torch.cat([finite[:3], finite.new_full((1, 48), broken), finite[3:], finite[:1]])
    features[-1, 5] = NAN
    more = torch.cat([weights[:3], torch.ones(1), weights[3:], torch.ones(1)])
    kept = [0, 1, 2, *range(4, 13)]
    picks = order(features, more, 14, impl)
    assert picks[:12] == [kept[i] for i in order(finite, weights, 12, impl)]
    assert picks[12:] == [3, 13]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 2.0**100])
def test_rows_whose_weight_is_not_finite_come_last_but_are_covered(impl, broken):
    """Row 0 is picked first for their sake, where row 3 alone has more weight."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([1.0, broken, broken, 2.0]), 4, impl) == [0, 3, 1, 2]


def test_segments_of_one_tile_share_a_group(monkeypatch, device):
    """Others do not, since the order in which numbers are added depends on the tile."""
    sizes = []
    monkeypatch.setattr(module, "_pick_group", lambda *x: sizes.append(list(x[6])))
    lengths = [10, 1024, 1025, 3]
    n = sum(lengths)
    given = clusters(n, 4).to(device), weights_of(n).to(device), ragged(lengths, device)
    coverage_select(*given, [1, 1, 1, 1], impl="triton")
    assert sizes == [[10, 1024], [1025], [3]]


def test_keeps_to_the_limit_that_it_names():
    n, width = 1500, 40
    features, weights = clusters(n, width), weights_of(n)
    taken = extra_bytes(lambda: coverage_select(features, weights, ragged([n]), [700]))
    assert taken < 6 * n**2 + 5 * n * width + 2**20
