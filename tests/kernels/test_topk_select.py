"""`topk_select`: the k largest of each segment under a total order."""

import re
import sys

import oracles
import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import (
    BATCHES,
    BLOCK_BATCHES,
    KERNEL,
    THOROUGH,
    batches,
    check_selection,
    fenced_rows,
    ragged,
    refusal,
)

from vtfast.kernels import _launch, reference
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.topk_select import topk_select

topk_module = sys.modules[topk_select.__module__]

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")


@pytest.fixture
def impl(select_impl):
    return select_impl


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = float("nan"), float("inf")
SPECIAL = [0.0, -0.0, NAN, -NAN, INF, -INF, 1.0, -1.0, -1.5, 2**-14, -(2**-14), 65504.0]
SCORE = st.one_of(st.sampled_from(SPECIAL), st.floats(-4, 4, width=16))


@THOROUGH
@given(batches(), st.data(), st.sampled_from(DTYPES))
def test_agrees_with_a_plain_sort(case, data, dtype):
    lengths, keep = case
    values = data.draw(st.lists(SCORE, min_size=sum(lengths), max_size=sum(lengths)))
    scores = torch.tensor(values, dtype=dtype)
    index = topk_select(scores, ragged(lengths), keep)
    assert index.tolist() == oracles.topk_select(scores.tolist(), lengths, keep)
    assert torch.equal(index, reference.topk_select(scores, ragged(lengths), keep))


@KERNEL
@given(batches(max_length=70), st.data(), st.sampled_from(KERNEL_DTYPES))
def test_the_kernel_agrees_with_a_plain_sort_and_with_the_reference(case, data, dtype):
    """Between fences of +infinity, which would win if they were read."""
    lengths, keep = case
    values = data.draw(st.lists(SCORE, min_size=sum(lengths), max_size=sum(lengths)))
    scores = torch.tensor(values, dtype=dtype)
    segments = ragged(lengths, DEVICE)
    index = topk_select(fenced_rows(scores, INF, DEVICE), segments, keep, impl="triton")
    assert index.tolist() == oracles.topk_select(scores.tolist(), lengths, keep)
    assert torch.equal(index, reference.topk_select(scores.to(DEVICE), segments, keep))


def best(values, k, impl, dtype=torch.float32):
    return topk_select(
        torch.tensor(values, dtype=dtype), ragged([len(values)]), [k], impl=impl
    ).tolist()


def test_breaks_ties_by_position(impl):
    assert best([1, 2, 2, 2, 0], 2, impl) == [1, 2]


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_takes_negative_zero_for_zero(impl, dtype):
    assert best([-0.0, 0.0], 1, impl, dtype) == [0]
    assert best([0.0, -0.0], 1, impl, dtype) == [0]


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_ranks_nan_below_minus_infinity(impl, dtype):
    assert best([NAN, -INF, -NAN, -INF], 2, impl, dtype) == [1, 3]
    assert best([NAN, -INF, -NAN, -INF], 3, impl, dtype) == [0, 1, 3]


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_tells_all_orders_of_magnitude_apart(impl, dtype):
    """Subnormal numbers too, of either sign."""
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = [tiny, -tiny, 2 * tiny, -2 * tiny, 0.0, 1.0, -1.0, INF, -INF]
    order = [7, 5, 2, 0, 4, 1, 3, 6, 8]
    for k in range(len(values)):
        assert best(values, k, impl, dtype) == sorted(order[:k])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_all_negative_scores_with_heavy_ties_keep_the_count(impl, dtype):
    """Keys of negative bf16 numbers once ended in ones: tied rows beat their own threshold."""
    values = [-3.0, -2.0, -2.0, -3.0, -2.0] * 20
    assert best(values, 10, impl, dtype) == [i for i, x in enumerate(values) if x == -2.0][:10]
    assert best([-2.0] * 300, 10, impl, dtype) == list(range(10))


def test_tells_float64_scores_apart_that_float32_would_merge():
    assert best([1.0, 1.0 + 2**-40], 1, "auto", torch.float64) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "keep"), [*BATCHES, *BLOCK_BATCHES])
def test_the_kernel_picks_what_the_reference_picks(device, lengths, keep, dtype):
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(2)).to(dtype)
    segments = ragged(lengths, device)
    index = topk_select(fenced_rows(scores, NAN, device), segments, keep, impl="triton")
    assert torch.equal(index, reference.topk_select(scores.to(device), segments, keep))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "keep"), BATCHES)
def test_picks_are_exact_distinct_ascending_rows(lengths, keep, dtype):
    scores = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(0)).to(dtype)
    check_selection(topk_select(scores, ragged(lengths), keep), lengths, keep)


def test_reads_strided_scores(impl):
    scores = torch.arange(10.0).view(5, 2)[:, 1]
    assert topk_select(scores, ragged([5]), [2], impl=impl).tolist() == [3, 4]
    assert topk_select(scores[:1].expand(5), ragged([5]), [2], impl=impl).tolist() == [0, 1]


def test_leaves_the_scores_alone(impl):
    scores = torch.tensor([NAN, -0.0, 3.0])
    topk_select(scores, ragged([3]), [2], impl=impl)
    assert torch.equal(scores.view(torch.int32), torch.tensor([NAN, -0.0, 3.0]).view(torch.int32))


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths in ([9, 4], [5, 5]):
        scores = torch.empty(sum(lengths), device="meta")
        assert topk_select(scores, ragged(lengths, "meta"), [3, 2]).shape == (5,)


def test_scores_in_training_are_accepted(impl):
    scores = torch.arange(3.0).requires_grad_()
    assert topk_select(scores, ragged([3]), [1], impl=impl).tolist() == [2]


def test_segments_too_long_for_the_kernel_fall_back_with_a_warning(monkeypatch):
    """What "auto" does on CUDA tensors, seen on the CPU."""
    choices = []

    def choose(op, impl, device, **options):
        choices.append(_launch.use_triton(op, impl, torch.device("cuda"), **options))
        return choices[-1]

    monkeypatch.setattr(topk_module, "use_triton", choose)
    monkeypatch.setattr(_launch, "_warned", set())
    scores = torch.arange(16385.0)
    with pytest.warns(RuntimeWarning, match="a segment has 16385 rows and the kernel takes 16384"):
        assert topk_select(scores, ragged([16385]), [1]).tolist() == [16384]
    assert topk_select(scores[:3].double(), ragged([3]), [1]).tolist() == [2]
    assert choices == [False, False]


def select(scores=(1.0, 2.0, 3.0), keep=(1,), dtype=torch.float32, device="cpu", **options):
    scores = torch.tensor(scores, dtype=dtype, device=device)
    return topk_select(scores, ragged([3], device), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal(
            "kernel dtype",
            ValueError,
            'the kernel does not take torch.float64; pass impl="auto"',
            lambda: select(dtype=torch.float64, impl="triton", device=DEVICE),
        ),
        refusal(
            "too long",
            ValueError,
            "a segment has 16385 rows and the kernel takes 16384; pass impl=",
            lambda: topk_select(
                torch.zeros(16385, device=DEVICE), ragged([16385], DEVICE), [1], impl="triton"
            ),
        ),
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
            lambda: topk_select([1.0], ragged([1]), [1]),
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
            "rows",
            ValueError,
            "the lengths of segments sum to 3 but scores has 2 rows",
            lambda: select([1.0, 2.0]),
        ),
        refusal(
            "too many",
            ValueError,
            "keep=4 for segment 0, which has 3 rows",
            lambda: select(keep=[4]),
        ),
        refusal("negative", ValueError, "keep=-1 for segment 0", lambda: select(keep=[-1])),
        refusal(
            "count", ValueError, "keep has 2 entries for 1 segments", lambda: select(keep=[1, 1])
        ),
        refusal(
            "device",
            ValueError,
            "scores is on meta but the other arguments are on cpu",
            lambda: topk_select(torch.zeros(3, device="meta"), ragged([3]), [1]),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
