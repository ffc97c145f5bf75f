"""`dpp_select`: greedy picks by the determinant of quality and cosines, k distinct rows always."""

import sys

import numpy as np
import pytest
import torch
from diversity_cases import INF, NAN, clusters
from gain_cases import order_of, weights_of
from parity import largest_determinant_each_time
from peak_memory import extra_bytes
from ragged_cases import ragged

from vtfast.kernels import _distances as distances
from vtfast.kernels.dpp_select import dpp_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
module = sys.modules[dpp_select.__module__]


def order(features, quality, k, impl="auto"):
    return order_of(dpp_select, features, quality, k, impl).tolist()


def test_the_replay_finds_a_pick_that_is_not_the_largest():
    features, quality = clusters(40, 64), weights_of(40)
    picks = order_of(dpp_select, features, quality, 20)
    picks[[3, 12]] = picks[[12, 3]]
    assert "pick 3 gains" in largest_determinant_each_time(features, quality, [40], [20])(picks)


def test_the_product_of_gains_is_the_determinant():
    """What the greedy is greedy for: no other row makes it larger, at any step."""
    features, quality = clusters(30, 48), weights_of(30)
    picks = order(features, quality, 6)
    x = torch.nn.functional.normalize(features.double(), dim=1) * quality[:, None]
    kernel = (x @ x.T).numpy()
    for done in range(6):
        dets = [np.linalg.det(kernel[np.ix_(rows, rows)]) for i in range(30)
                for rows in [[*picks[:done], i]]]  # fmt: skip
        assert dets[picks[done]] >= max(dets) * (1 - 1e-5)


def test_starts_with_the_row_of_the_best_quality(impl):
    assert order(torch.eye(4), torch.tensor([1.0, 2.0, 3.0, 0.5]), 4, impl) == [2, 1, 0, 3]


def test_a_row_like_a_picked_one_has_to_be_better(impl):
    """Its cosine to the first pick is 0.8, so its residual is 0.36."""
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    assert order(rows, torch.tensor([3.0, 2.0, 1.0]), 2, impl) == [0, 1]
    assert order(rows, torch.tensor([3.0, 1.5, 1.0]), 2, impl) == [0, 2]


def test_nearly_equal_gains_go_to_the_lowest_row(impl):
    """Within 2^-17 of the largest; further apart the larger one is picked."""
    near, far = 1 + 2.0**-19, 1 + 2.0**-15
    assert order(torch.eye(3), torch.tensor([1.0, near, 1.0]), 3, impl) == [0, 1, 2]
    assert order(torch.eye(3), torch.tensor([1.0, far, 1.0]), 3, impl) == [1, 0, 2]


def test_copies_of_a_picked_row_have_no_gain_though_rounded(impl):
    """Without a limit they would have 1e-7 of it, in an order that depends on the device."""
    features = clusters(12, 48)
    features = torch.cat([features, features[:5], -features[5:7]])
    picks = order(features, weights_of(19).clamp(min=0.1), 19, impl)
    copies = {tuple(sorted(pair)) for pair in zip([*range(7)], [*range(12, 19)], strict=True)}
    assert len({row if row < 12 else row - 12 for row in picks[:12]}) == 12
    assert picks[12:] == sorted(picks[12:])
    assert all((a in picks[:12]) != (b in picks[:12]) for a, b in copies)


def test_where_no_row_has_a_gain_the_lowest_ones_are_picked(impl):
    """At rank 2 after two picks; with a quality of 0 at once."""
    plane = clusters(7, 2)
    picks = order(plane, torch.ones(7), 7, impl)
    assert picks[2:] == sorted(picks[2:])
    assert order(clusters(5), torch.zeros(5), 5, impl) == [0, 1, 2, 3, 4]


def test_only_directions_and_the_magnitude_of_quality_matter(impl):
    features, quality = clusters(40, 48), weights_of(40)
    expected = order(features, quality, 20, impl)
    scaled = features * 2.0 ** torch.arange(-20, 20)[:, None]
    assert order(scaled, -quality, 20, impl) == expected
    assert order(features, quality * 2.0**-30, 20, impl) == expected


def test_a_zero_row_has_no_gain(impl):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-30, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([9.0, 1.0, 9.0, 1.0]), 4, impl) == [1, 3, 0, 2]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e30])
def test_rows_and_qualities_that_are_not_finite_come_last_and_change_nothing(impl, broken):
    finite, quality = clusters(12, 48), weights_of(12)
    features = torch.cat([finite[:3], finite.new_full((1, 48), broken), finite[3:], finite[:1]])
    qualities = torch.cat([quality[:3], torch.ones(1), quality[3:], torch.tensor([broken])])
    kept = [0, 1, 2, *range(4, 13)]
    picks = order(features, qualities, 14, impl)
    assert picks[:12] == [kept[i] for i in order(finite, quality, 12, impl)]
    assert picks[12:] == [3, 13]


def test_matrix_and_vectors_of_a_group_keep_to_the_limit(monkeypatch, device):
    """10 x 16 distances and 5 x 16 numbers of vectors are 960 bytes a segment."""
    sizes, make = [], module.distance_matrices
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 960)
    monkeypatch.setattr(
        module, "distance_matrices", lambda *x: (sizes.append(len(x[-1])), make(*x))[1]
    )
    given = clusters(50).to(device), weights_of(50).to(device), ragged([10] * 5, device), [5] * 5
    dpp_select(*given, impl="triton")
    assert sizes == [2, 2, 1]


def test_keeps_to_the_limit_that_it_names():
    n, k, width = 1500, 700, 40
    features, quality = clusters(n, width), weights_of(n)
    taken = extra_bytes(lambda: dpp_select(features, quality, ragged([n]), [k]))
    assert taken < 6 * n**2 + 4 * n * k + 5 * n * width + 2**20
