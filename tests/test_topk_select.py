"""`topk_select`: the k largest of each segment under a total order."""

import re

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import CUTS, THOROUGH, check_selection, cut, cuts, refusal

from vtfast.kernels.topk_select import topk_select

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = float("nan"), float("inf")
SPECIAL = [0.0, -0.0, NAN, -NAN, INF, -INF, 1.0, -1.0, -1.5, 2**-14, -(2**-14), 65504.0]
SCORE = st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=16))


@THOROUGH
@given(cuts(), st.data(), st.sampled_from(DTYPES))
def test_agrees_with_a_plain_sort(case, data, dtype):
    lengths, keep = case
    values = data.draw(st.lists(SCORE, min_size=sum(lengths), max_size=sum(lengths)))
    scores = torch.tensor(values, dtype=dtype)
    index = topk_select(scores, cut(lengths), keep)
    assert index.tolist() == oracles.topk_select(scores.tolist(), lengths, keep)


def best(values, k, dtype=torch.float32):
    return topk_select(torch.tensor(values, dtype=dtype), cut([len(values)]), [k]).tolist()


def test_breaks_ties_by_position():
    assert best([1, 2, 2, 2, 0], 2) == [1, 2]


def test_takes_negative_zero_for_zero():
    assert best([-0.0, 0.0], 1) == [0]
    assert best([0.0, -0.0], 1) == [0]


def test_ranks_nan_below_minus_infinity():
    assert best([NAN, -INF, -NAN, -INF], 2) == [1, 3]
    assert best([NAN, -INF, -NAN, -INF], 3) == [0, 1, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_negative_scores_with_heavy_ties_keep_the_count(dtype):
    values = [-3.0, -2.0, -2.0, -3.0, -2.0] * 20
    assert best(values, 10, dtype) == [i for i, x in enumerate(values) if x == -2.0][:10]


def test_tells_float64_scores_apart_that_float32_would_merge():
    assert best([1.0, 1.0 + 2**-40], 1, torch.float64) == [1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "keep"), CUTS)
def test_picks_are_exact_distinct_ascending_rows(lengths, keep, dtype):
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0)).to(dtype)
    check_selection(topk_select(scores, cut(lengths), keep), lengths, keep)


def test_a_segment_picks_the_same_alone_and_in_a_batch():
    lengths, keep = [30, 64, 9], [11, 32, 4]
    scores = torch.randn(103, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    together = topk_select(scores, cut(lengths), keep).split(keep)
    for s, (start, n) in enumerate(zip((0, 30, 94), lengths, strict=True)):
        alone = topk_select(scores[start : start + n], cut([n]), [keep[s]])
        assert torch.equal(alone + start, together[s])


def test_reads_strided_scores():
    scores = torch.arange(10.0).view(5, 2)[:, 1]
    assert topk_select(scores, cut([5]), [2]).tolist() == [3, 4]


def test_leaves_the_scores_alone():
    scores = torch.tensor([NAN, -0.0, 3.0])
    topk_select(scores, cut([3]), [2])
    assert torch.equal(scores.view(torch.int32), torch.tensor([NAN, -0.0, 3.0]).view(torch.int32))


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths in ([9, 4], [5, 5]):
        scores = torch.empty(sum(lengths), device="meta")
        assert topk_select(scores, cut(lengths, "meta"), [3, 2]).shape == (5,)


def select(scores=(1.0, 2.0, 3.0), keep=(1,), dtype=torch.float32, **options):
    return topk_select(torch.tensor(scores, dtype=dtype), cut([3]), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal("no kernel", RuntimeError, "no Triton kernel", lambda: select(impl="triton")),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: topk_select(torch.zeros(3), [3], [1]),
        ),
        refusal(
            "no tensor",
            TypeError,
            "scores must be a tensor",
            lambda: topk_select([1.0], cut([1]), [1]),
        ),
        refusal(
            "rank",
            ValueError,
            "scores must have 1 dimensions, got shape (1, 3)",
            lambda: select([[1.0, 2.0, 3.0]]),
        ),
        refusal(
            "dtype", TypeError, "scores must be floating point", lambda: select(dtype=torch.int64)
        ),
        refusal(
            "rows", ValueError, "segments cuts 3 rows but scores has 2", lambda: select([1.0, 2.0])
        ),
        refusal(
            "too many",
            ValueError,
            "keep=4 for segment 0, which has 3 rows",
            lambda: select(keep=[4]),
        ),
        refusal(
            "count", ValueError, "keep has 2 entries for 1 segments", lambda: select(keep=[1, 1])
        ),
        refusal(
            "device",
            ValueError,
            "scores is on meta but the other arguments are on cpu",
            lambda: topk_select(torch.zeros(3, device="meta"), cut([3]), [1]),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
