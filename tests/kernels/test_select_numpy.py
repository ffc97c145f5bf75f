"""Random and top-k picks by NumPy: when they are made, the same picks, within the same memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from ragged_cases import ragged
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from vtfast.kernels import _select_numpy, reference
from vtfast.kernels._philox import philox_4x32, philox_4x32_numpy
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Beyond the registers of the sorts in NumPy, which hold up to 1024 numbers.
LENGTHS, KEEP = (577, 0, 63, 4099, 1, 2300), (58, 0, 63, 1025, 1, 0)


def random_scores(rows: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def by_numpy(monkeypatch):
    """The numbers of the calls that NumPy served, one for each."""
    served, smallest = [], _select_numpy._smallest

    def counted(*arguments):
        served.append(len(served))
        return smallest(*arguments)

    monkeypatch.setattr(_select_numpy, "_smallest", counted)
    return served


@pytest.mark.parametrize("n", [0, 1, 5, 145, 9000])
def test_philox_is_that_of_pytorch(n):
    generator = np.random.default_rng(n)
    counter = generator.integers(0, 2**32, (4, n), np.uint32)
    for seed in map(int, generator.integers(-(2**63), 2**63, 4)):
        words = philox_4x32(torch.from_numpy(counter.astype(np.int64)), torch.tensor([seed]))
        assert np.array_equal(philox_4x32_numpy(counter, seed), words.T.numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["few ties", "ties and NaN"])
def test_topk_of_long_segments_is_that_of_the_reference(by_numpy, dtype, ties):
    segments, scores = ragged(LENGTHS), random_scores(sum(LENGTHS), dtype)
    if ties:
        scores = scores.round(decimals=1)
        scores[::3], scores[1::9] = -0.0, torch.nan
        scores[sum(LENGTHS[:2]) :][:63] = torch.nan
    for keep in (KEEP, LENGTHS, [n * 9 // 10 for n in LENGTHS]):
        index = topk_select(scores, segments, keep)
        assert torch.equal(index, reference.topk_select(scores, segments, keep))
    assert len(by_numpy) == 3


@pytest.mark.parametrize("at_once", [2**16, 4000, 1], ids=["together", "in groups", "alone"])
def test_words_drawn_in_any_groups_are_those_of_the_reference(monkeypatch, by_numpy, at_once):
    monkeypatch.setattr(_select_numpy, "_ROWS_AT_ONCE", at_once)
    hashes = torch.arange(-3, 3) * 2**61 + 5
    names = {"seed": -9, "image_hash": hashes, "stream": 2**31 - 1}
    index = random_select(ragged(LENGTHS), KEEP, **names)
    assert torch.equal(index, reference.random_select(ragged(LENGTHS), KEEP, **names))
    assert len(by_numpy) == 1


def test_scores_may_be_negated_views_or_need_a_gradient(by_numpy):
    pairs = torch.complex(torch.zeros(5), torch.arange(5.0)).conj()
    assert pairs.imag.is_neg()
    assert topk_select(pairs.imag, ragged([5]), [2]).tolist() == [0, 1]
    scores = torch.arange(5.0, dtype=torch.bfloat16).requires_grad_()
    assert topk_select(scores, ragged([5]), [2]).tolist() == [3, 4]
    assert len(by_numpy) == 2


@pytest.mark.parametrize("op", ["random", "topk"])
def test_a_long_segment_takes_a_few_numbers_a_row(by_numpy, op):
    rows = 2**18
    segments, scores = ragged([rows]), random_scores(rows, torch.float32)
    tracemalloc.start()  # it knows what NumPy allocates
    if op == "random":
        random_select(segments, [9], seed=0, stream=0)
    else:
        topk_select(scores, segments, [9])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * rows < peak < 40 * rows
    assert by_numpy


def test_words_of_many_segments_are_not_drawn_together(by_numpy):
    segments = ragged([576] * 2000)
    tracemalloc.start()
    random_select(segments, [1] * 2000, seed=0, stream=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * segments.total
    assert by_numpy


class Counter(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


SEGMENTS, SCORES = ragged([9, 4]), random_scores(26, torch.float32).view(2, 13)
HASHES, SEED = torch.tensor([[3, 1], [4, 1]]), torch.tensor([7])


def topk(scores):
    return topk_select(scores, SEGMENTS, [3, 2])


def draw(hashes):
    return random_select(SEGMENTS, [3, 2], seed=SEED, image_hash=hashes, stream=0)


def under_a_mode(select, x):
    with Counter():
        return torch.stack([select(row) for row in x])


def compiled(select, x):
    return torch.stack([torch.compile(select, backend="eager")(row) for row in x])


SEEN_BY_TORCH = {
    "vmap": torch.vmap,
    "traced": lambda select: lambda x: torch.stack([make_fx(select)(x[0])(row) for row in x]),
    "a dispatch mode": lambda select: lambda x: under_a_mode(select, x),
    "compiled": lambda select: lambda x: compiled(select, x),
    "a subclass": lambda select: (
        lambda x: torch.stack([select(torch.nn.Parameter(row, requires_grad=False)) for row in x])
    ),
}


@pytest.mark.parametrize(("select", "x"), [(topk, SCORES), (draw, HASHES)], ids=["topk", "random"])
@pytest.mark.parametrize("way", SEEN_BY_TORCH.values(), ids=SEEN_BY_TORCH)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_what_watches_the_operators_of_torch_sees_them(by_numpy, select, x, way):
    expected = torch.stack([select(row) for row in x])
    by_numpy.clear()
    assert torch.equal(way(select)(x), expected)
    assert not by_numpy
