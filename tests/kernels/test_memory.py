"""What the PyTorch references take beside arguments and result: at most 256 MiB, at any length."""

import pytest
import torch
from peak_memory import extra_bytes

from vtfast.kernels import _sdpa, reference
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.image_hash import image_hash
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

LIMIT = 2**28
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def cut(*lengths: int) -> Ragged:
    return Ragged.from_lengths(lengths, "cpu")


def test_extra_bytes_sees_a_matrix_that_is_freed_again():
    assert extra_bytes(lambda: (torch.ones(512, 512) @ torch.ones(512, 1)).sum(0)) >= 2**20


def test_diversity_of_a_segment_beyond_the_kernel_takes_no_matrix():
    """It took 1.4 GB for 16,384 rows, and 3.1 GB for 24,576."""
    n = 16_500
    features = rows(n, 8)
    assert extra_bytes(lambda: diversity_select(features, cut(n), [16])) < LIMIT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "width"),
    [([3000], 40), ([500, 3000, 900, 900, 1], 40), ([400] * 12, 40), ([100, 800], 1200)],
    ids=["one", "several", "many", "wide"],
)
def test_diversity_keeps_to_its_limit(monkeypatch, dtype, lengths, width):
    """Here the limit is 8 MB, and a part may have a few numbers a row beside it."""
    monkeypatch.setattr(reference, "_MAX_BYTES", 2**23)
    features, keep = rows(sum(lengths), width, dtype=dtype), [n // 6 for n in lengths]
    for weights in (None, rows(sum(lengths)).abs()):
        taken = extra_bytes(
            lambda weights=weights: diversity_select(features, cut(*lengths), keep, weights=weights)
        )
        assert taken < 2**23 + 200 * sum(lengths)


@pytest.mark.parametrize("name", ["random", "topk", "topk fp64"])
def test_one_long_segment_among_many_short_ones_is_not_padded_to(monkeypatch, name):
    """All would be as long as the longest: 12 MB and more, instead of 100 KB."""
    lengths = (5000, *[3] * 300)
    segments, keep = cut(*lengths), [1] * len(lengths)
    scores = rows(sum(lengths), dtype=torch.float64 if name.endswith("64") else torch.float32)
    monkeypatch.setattr(reference, "_MAX_BYTES", 2**20)

    def call():
        if name == "random":
            return random_select(segments, keep, seed=0, stream=0)
        return topk_select(scores, segments, keep)

    assert extra_bytes(call) < 2**20 + 100 * sum(lengths)


def test_pixels_are_hashed_a_part_at_a_time():
    """All at once would take 8 bytes for each of 4 million values, twice."""
    pixels = rows(4, 3, 600, 600)
    assert extra_bytes(lambda: image_hash(pixels)) < 2**22


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_scores_cast_a_part_of_the_keys_at_a_time(monkeypatch, dtype):
    q, k = rows(1, 8, 64, dtype=dtype), rows(9000, 4, 64, dtype=dtype)
    monkeypatch.setattr(reference, "_MAX_BYTES", 2**20)
    taken = extra_bytes(lambda: last_query_scores(q, k, cut(9000), scale=0.1))
    assert taken < 2**20 + 100 * len(k)  # of which 64 for logits and weights of 8 heads


def test_scores_in_parts_are_those_of_the_whole(monkeypatch):
    q, k, segments = rows(2, 8, 16), rows(500, 4, 16), cut(400, 100)
    whole = last_query_scores(q, k, segments, scale=0.25)
    monkeypatch.setattr(reference, "_MAX_BYTES", 8 * 64 * 33)
    parts = last_query_scores(q, k, segments, scale=0.25)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)


def test_the_causal_mask_of_a_long_prefix_is_made_in_parts(monkeypatch):
    """A mask of all queries and keys would be 4 MB here, as numbers 16 MB."""
    q, k, segments = rows(1500, 4, 16), rows(2500, 2, 16), (cut(1500), cut(2500))
    whole = ragged_attention(q, k, k, *segments)
    monkeypatch.setattr(_sdpa, "_MAX_MASK", 2**17)
    parts = []
    taken = extra_bytes(lambda: parts.append(ragged_attention(q, k, k, *segments)))
    assert taken < 8 * 2**17 + 3 * whole.nbytes
    torch.testing.assert_close(parts[0], whole, rtol=1e-5, atol=1e-6)
