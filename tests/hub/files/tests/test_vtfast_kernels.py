"""Every op, in PyTorch and as kernels, against plain loops that share no code with it."""

from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

import kernels

ops = kernels.get_local_kernel(Path(__file__).resolve().parents[1])

LENGTHS, KEEP = [5, 0, 33, 1], [2, 0, 8, 1]
TOTAL, HEADS, KEY_HEADS, SIZE = sum(LENGTHS), 4, 2, 16

ON_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.kernels_ci


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device(impl: str) -> str:
    return "cuda" if impl == "triton" and ON_GPU else "cpu"


@pytest.fixture
def segments(device: str):
    return ops.Ragged.from_lengths(LENGTHS, device)


def normal(device: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) * 1000 + shape[0])
    return torch.randn(shape, generator=generator).to(device)


def exact(x: torch.Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def near(got: torch.Tensor, expected: np.ndarray) -> bool:
    return np.abs(exact(got) - expected).max() < 1e-5


def test_gathers_the_bits_of_rows(impl, device):
    tensors = normal(device, 9, 40).half(), torch.arange(9, device=device)
    index = torch.tensor([8, 0, 8, 3], device=device)
    for rows, x in zip(ops.gather_rows(index, *tensors, impl=impl), tensors, strict=True):
        assert torch.equal(rows, x[index])


@pytest.mark.parametrize("hashes", [None, [7, -1, 2**40, 3]], ids=["counted", "hashed"])
def test_random_picks_are_those_of_philox(impl, device, segments, hashes):
    given = None if hashes is None else torch.tensor(hashes, device=device)
    index = ops.random_select(segments, KEEP, seed=5, stream=2, image_hash=given, impl=impl)
    expected = oracles.random_select(LENGTHS, KEEP, 5, hashes or range(4), 2)
    assert index.tolist() == expected


def test_the_largest_scores_are_picked(impl, device, segments):
    scores = normal(device, TOTAL).mul(2).round()  # so that there are ties
    scores[7] = torch.nan
    index = ops.topk_select(scores, segments, KEEP, impl=impl)
    assert index.tolist() == oracles.topk_select(scores.tolist(), LENGTHS, KEEP)


@pytest.mark.parametrize("op", ["diversity_select", "dpp_select", "coverage_select"])
def test_greedy_picks_are_those_of_fp64(impl, device, segments, op):
    x, weights = normal(device, TOTAL, 24), normal(device, TOTAL).exp()
    given = (x,) if op == "diversity_select" else (x, weights)
    index, order = getattr(ops, op)(*given, segments, KEEP, return_order=True, impl=impl)
    expected = getattr(oracles, op)(*map(exact, given), LENGTHS, KEEP)
    assert (order.tolist(), index.tolist()) == (expected, sorted(expected))


def test_hashes_are_those_of_python_integers(impl, device):
    pixels = normal(device, 3, 2, 5)
    words = pixels.flatten(1).view(torch.int32).tolist()
    expected = [oracles.image_hash([word % 2**32 for word in picture]) for picture in words]
    assert ops.image_hash(pixels, impl=impl).tolist() == expected


def test_scores_are_the_attention_of_the_last_query(impl, device, segments):
    q, k = normal(device, len(LENGTHS), HEADS, SIZE), normal(device, TOTAL, KEY_HEADS, SIZE)
    scores = ops.last_query_scores(q, k, segments, scale=0.25, impl=impl)
    assert near(scores, oracles.last_query_scores(exact(q), exact(k), LENGTHS, 0.25))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_attention_is_that_of_each_sequence(impl, device, segments, causal):
    q = normal(device, TOTAL, HEADS, SIZE)
    k, v = normal(device, TOTAL, KEY_HEADS, SIZE), normal(device, TOTAL, KEY_HEADS, SIZE).cos()
    out = ops.ragged_attention(q, k, v, segments, segments, causal=causal, scale=0.25, impl=impl)
    given = *map(exact, (q, k, v)), LENGTHS, LENGTHS
    assert near(out, oracles.attention(*given, causal, 0.25))


def test_decoding_is_attention_over_the_cache(impl, device):
    q = normal(device, len(LENGTHS), HEADS, SIZE)
    k, v = normal(device, TOTAL, KEY_HEADS, SIZE), normal(device, TOTAL, KEY_HEADS, SIZE).cos()
    starts = list(accumulate(LENGTHS, initial=0))[:-1]
    places = [torch.tensor(x, device=device, dtype=torch.int32) for x in (LENGTHS, starts)]
    out = ops.ragged_decode(q, k, v, places[0], starts=places[1], scale=0.25, impl=impl)
    assert near(out, oracles.decode(*map(exact, (q, k, v)), starts, LENGTHS, 0.25))


def test_segments_begin_where_the_ones_before_end():
    segments = ops.Ragged.from_lengths(LENGTHS, "cpu")
    assert segments.cu_seqlens.tolist() == [0, *accumulate(LENGTHS)]
    assert [b - a for a, b in pairwise(segments.offsets)] == LENGTHS


def test_ops_are_registered_under_the_name_of_this_build():
    registered = getattr(torch.ops, ops.__name__).gather_rows.default
    device = "cuda" if ON_GPU else "cpu"
    arguments = torch.tensor([1, 0], device=device), [normal(device, 3, 4)]
    torch.library.opcheck(registered, arguments, test_utils=("test_schema", "test_faketensor"))
