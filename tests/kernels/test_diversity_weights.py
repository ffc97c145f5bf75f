"""`diversity_select` with weights: distances multiplied, ties and rows that are out decided."""

import re

import pytest
import torch
from diversity_cases import INF, NAN, clusters, order_of, weights_of
from ragged_cases import ragged, refusal

from vtfast.kernels import _max_min as max_min
from vtfast.kernels import reference
from vtfast.kernels.diversity_select import diversity_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, -1.0, -3.4e38])
def test_rows_whose_weight_is_none_come_last_and_change_nothing(impl, broken):
    """As rows that are not finite, one of which is among them here."""
    rows, weights = clusters(12), weights_of(12)
    features = torch.cat([rows[:3], rows[:1], rows[3:], rows.new_full((1, 16), NAN), rows[5:6]])
    more = torch.tensor([broken])
    several = torch.cat([weights[:3], more, weights[3:], more.new_ones(1), more])
    kept = [0, 1, 2, *range(4, 13)]
    order = order_of(features, 15, impl, several)
    assert order[:12] == [kept[i] for i in order_of(rows, 12, impl, weights)]
    assert order[12:] == [3, 13, 14]


def test_weights_of_one_change_no_pick(impl):
    features = torch.cat([clusters(90), clusters(20), torch.zeros(2, 16)])
    assert order_of(features, 112, impl, torch.ones(112)) == order_of(features, 112, impl)


def test_a_weight_brings_a_row_to_the_front(impl):
    """The row whose nearest other row is farthest, then the farthest from it; unless they weigh."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.5]])
    assert order_of(features, 3, impl) == [2, 0, 1]
    assert order_of(features, 3, impl, torch.tensor([1.0, 600.0, 1.0])) == [1, 2, 0]
    assert order_of(features, 3, impl, torch.tensor([1.0, 1.5, 1.0])) == [2, 1, 0]


def test_rows_of_weight_0_are_picked_by_position(impl):
    """Rounding makes distances of copies negative, and as integers -0.0 is below 0.0."""
    features, weights = clusters(131, 64), torch.zeros(131)
    features[66:] = features[:65]
    assert order_of(features, 131, impl, weights) == list(range(131))
    weights[65] = 1.0
    assert order_of(features, 131, impl, weights) == [65, *range(65), *range(66, 131)]


def test_no_weight_is_too_large(impl):
    """Copies are -1e-7 apart: times 3e38 they would be behind a row that is not finite."""
    features = clusters(130, 64)
    features[65:] = features[:65]
    features[3] = NAN
    order = order_of(features, 130, impl, torch.full((130,), 3e38))
    assert order[-1] == 3
    assert sorted(order) == list(range(130))


def test_reads_strided_weights(impl):
    features, weights = clusters(40), weights_of(80)
    expected = order_of(features, 9, impl, weights[::2].clone())
    assert order_of(features, 9, impl, weights[::2]) == expected
    assert order_of(features, 9, impl, torch.ones(1).expand(40)) == order_of(features, 9, impl)


def test_without_weights_nothing_is_multiplied(monkeypatch):
    """Nor is anything made for it: their call has the same operators as ever."""
    monkeypatch.setattr(max_min, "_weigh", None)
    order_of(clusters(30), 9)
    monkeypatch.setattr(reference, "_MAX_BYTES", 0)
    order_of(clusters(30), 9)


def select(weights):
    return diversity_select(torch.ones(3, 2), ragged([3]), [1], weights=weights)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal(
            "weights as a list",
            TypeError,
            "weights must be a tensor, got list",
            lambda: select([1.0, 1.0, 1.0]),
        ),
        refusal(
            "dtype of weights",
            TypeError,
            "weights must be float32, got torch.bfloat16; cast it first",
            lambda: select(torch.ones(3, dtype=torch.bfloat16)),
        ),
        refusal(
            "rank of weights",
            ValueError,
            "weights must have 1 dimensions, got shape (3, 1)",
            lambda: select(torch.ones(3, 1)),
        ),
        refusal(
            "number of weights",
            ValueError,
            "the lengths of segments sum to 3 but weights has 4 rows; they must agree",
            lambda: select(torch.ones(4)),
        ),
        refusal(
            "device of weights",
            ValueError,
            "weights is on meta but the other arguments are on cpu; move it there",
            lambda: select(torch.ones(3, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
