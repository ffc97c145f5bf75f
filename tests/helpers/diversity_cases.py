"""Features to try `diversity_select` on, and a check of its picks, shared by its tests."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from ragged_cases import ragged

from vtfast.kernels.diversity_select import diversity_select

NAN, INF = float("nan"), float("inf")

# Norms are powers of two, so all cosines are multiples of 1/4 and fp32 ties where fp64 does.
SIGNS = st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)
AXES = st.sampled_from([[s * (i == j) for j in range(4)] for i in range(4) for s in (1.0, -1.0)])
BROKEN = st.sampled_from([[NAN] * 4, [0.0, INF, 0.0, 0.0], [1.0, 2.0, NAN, 0.0], [1e30] * 4])
ZERO = st.sampled_from([[0.0] * 4, [0.0] * 4, [1e-30, 0.0, -1e-30, 0.0]])
ROW = st.one_of(SIGNS, SIGNS, AXES, AXES, ZERO, BROKEN)
# Powers of 2 keep products exact; of the others some are no weights.
WEIGHT = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 4.0, 0.0, NAN, INF, -1.0])
weighted = pytest.mark.parametrize(
    "weight",
    [
        pytest.param(None, id="no weights"),
        pytest.param(WEIGHT, id="weights"),
        pytest.param(st.sampled_from([0.0, 0.0, 1.0]), id="mostly weights of 0"),
    ],
)


def drawn_weights(data, weight, n):
    """Weights of n rows, or None, from a case of `weighted`."""
    if weight is None:
        return None
    return torch.tensor(data.draw(st.lists(weight, min_size=n, max_size=n)), dtype=torch.float32)


def listed(weights):
    """As the oracle takes weights."""
    return None if weights is None else weights.tolist()


def clusters(n, dim=16, seed=0, dtype=torch.float32):
    """Real-valued features with structure: rows scattered around a few shared directions."""
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(5, dim, generator=generator)
        which = torch.randint(5, (n,), generator=generator)
        x = (centres[which] + 0.3 * torch.randn(n, dim, generator=generator)).to(dtype)
    return x.to(torch.get_default_device())


def weights_of(n, seed=0):
    """Random weights between 0 and 4; every seventh is 0."""
    with torch.device("cpu"):
        weights = 4 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
        weights[::7] = 0
    return weights.to(torch.get_default_device())


def order_of(features, k, impl="auto", weights=None):
    segments = ragged([len(features)], features.device)
    options = {"weights": weights, "return_order": True, "impl": impl}
    return diversity_select(features, segments, [k], **options)[1].tolist()


def check_greedy(features, picks, k, weights=None):
    """The first k picks, each among those left, on the fp64 matrix."""
    x = features.double().cpu().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = 1.0 - x @ x.T
    if weights is not None:
        distance *= weights.double().cpu().numpy()
    np.fill_diagonal(distance, INF)
    gap = distance.min(0)
    assert gap[picks[0]] >= gap.max() - 1e-5
    for done in range(1, k):
        gap = distance[picks[:done]].min(0)
        gap[picks[:done]] = -INF
        assert gap[picks[done]] >= gap.max() - 1e-5
