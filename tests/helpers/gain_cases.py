"""Weights to try `dpp_select` and `coverage_select` on, and calls, shared by their tests."""

import torch
from diversity_cases import INF, NAN, ROW
from examples import examples
from hypothesis import strategies as st
from ragged_cases import batches, check_selection, fenced_rows, ragged

# 1.8 segments a batch.
MANY = examples(1200)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])

# Gains of rows whose cosines are multiples of 1/4 are then equal, or far apart.
_USUAL = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0])
_UNUSUAL = st.sampled_from([NAN, INF, -INF, 1e-34, -0.0, 2.0**101])
WEIGHT = st.one_of(_USUAL, _USUAL, _USUAL, _UNUSUAL)


@st.composite
def cases(draw, dtypes=DTYPES):
    """Features and weights of two dtypes, the lengths and keep counts of their segments."""
    lengths, keep = draw(batches(max_length=7))
    total, scale = sum(lengths), draw(st.sampled_from([1.0, 0.5, 64.0]))
    rows = draw(st.lists(ROW, min_size=total, max_size=total))
    weights = draw(st.lists(WEIGHT, min_size=total, max_size=total))
    features = (torch.tensor(rows).view(-1, 4) * scale).to(draw(dtypes))
    return features, torch.tensor(weights).to(draw(dtypes)), lengths, keep


def check_against(op, oracle, case, device="cpu", impl="auto"):
    """The picks of an oracle, in pick order and ascending, between fences of NaN; returns these."""
    features, weights, lengths, keep = case
    given = (fenced_rows(x, NAN, device) for x in (features, weights))
    index, order = op(*given, ragged(lengths, device), keep, return_order=True, impl=impl)
    expected = oracle(features.double().numpy(), weights.float().numpy(), lengths, keep)
    assert order.tolist() == expected
    check_selection(index, lengths, keep)
    assert sorted(expected) == index.tolist()
    return index, order


def weights_of(n, seed=0, dtype=torch.float32):
    """Between 0 and 2, no two alike."""
    with torch.device("cpu"):
        w = 2 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return w.to(torch.get_default_device(), dtype)


def order_of(op, features, weights, k, impl="auto"):
    segments = ragged([len(features)], features.device)
    return op(features, weights, segments, [k], return_order=True, impl=impl)[1]
