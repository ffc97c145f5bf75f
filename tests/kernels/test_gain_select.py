"""What `dpp_select` and `coverage_select` promise alike: they differ in what a pick gains.

Each has a file of its own for that.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import oracles
import pytest
import torch
from devices import DEVICE
from diversity_cases import clusters
from gain_cases import DTYPES, MANY, cases, check_against, order_of, weights_of
from hypothesis import given
from hypothesis import strategies as st
from parity import best_coverage_each_time, largest_determinant_each_time
from ragged_cases import BATCHES, KERNEL, check_selection, ragged, refusal

from vtfast.kernels import _coverage, _determinant, reference
from vtfast.kernels import _distances as distances
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.dpp_select import dpp_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]


class Op(NamedTuple):
    """An op, and what its tests need. weights: what it calls them. longest: rows of its kernel."""

    select: Callable
    weights: str
    longest: int
    oracle: Callable
    reference: Callable
    replayed: Callable
    loops: object

    def order(self, features, weights, k, impl="auto"):
        """Picks in pick order."""
        return order_of(self.select, features, weights, k, impl).tolist()


DPP = Op(
    *(dpp_select, "quality", 4096, oracles.dpp_select, reference.dpp_select),
    *(largest_determinant_each_time, _determinant),
)
COVERAGE = Op(
    *(coverage_select, "weights", 8192, oracles.coverage_select, reference.coverage_select),
    *(best_coverage_each_time, _coverage),
)
each_op = pytest.mark.parametrize("op", [DPP, COVERAGE], ids=["dpp", "coverage"])


@each_op
@MANY
@given(case=cases())
def test_agrees_with_the_plain_greedy(op, case):
    check_against(op.select, op.oracle, case)


@each_op
@KERNEL
@given(case=cases(st.sampled_from(KERNEL_DTYPES)))
def test_the_kernel_agrees_with_the_plain_greedy_and_with_the_reference(op, case):
    index, _ = check_against(op.select, op.oracle, case, DEVICE, "triton")
    features, weights, lengths, keep = case
    where = ragged(lengths, DEVICE), keep
    expected = op.reference(features.to(DEVICE), weights.to(DEVICE), *where)
    assert torch.equal(index, expected)


@pytest.fixture
def general_loop(monkeypatch):
    """What other devices than CPUs run."""

    def instead_of(loops):
        def loop(*tensors):
            *tensors, steps = tensors
            batch = [torch.from_numpy(x)[None] for x in tensors]
            return loops._greedy_loop(*batch, steps)[0].numpy()

        return loop

    for loops in (_determinant, _coverage):
        monkeypatch.setattr(loops, "_greedy_loop_numpy", instead_of(loops))


@pytest.mark.usefixtures("general_loop")
@each_op
@KERNEL
@given(case=cases(DTYPES))
def test_the_loop_of_other_devices_agrees_with_the_plain_greedy_in_eager_mode(op, case):
    check_against(op.select, op.oracle, case)


@pytest.mark.parametrize(
    ("n", "dim", "k", "dtype"),
    [
        (63, 16, 30, torch.float32),
        (577, 64, 14, torch.bfloat16),
        (64, 1024, 64, torch.float32),
        (64, 1024, 64, torch.float16),
    ],
)
@each_op
def test_every_pick_has_the_largest_gain_given_the_picks_before_it(impl, op, n, dim, k, dtype):
    """Replayed in fp64: rounding may choose between residuals 2e-5 or sums 2^-20 n apart."""
    features, weights = clusters(n, dim, dtype=dtype), weights_of(n, dtype=dtype)
    picks = order_of(op.select, features, weights, k, impl)
    assert not op.replayed(features, weights, [n], [k])(picks)


@pytest.mark.parametrize(("lengths", "keep"), BATCHES[:-1])  # 577 rows are among those above
@each_op
def test_picks_are_exact_distinct_ascending_rows(impl, op, lengths, keep):
    features, weights = clusters(sum(lengths)), weights_of(sum(lengths))
    index = op.select(features, weights, ragged(lengths), keep, impl=impl)
    check_selection(index, lengths, keep)


@each_op
def test_a_segment_is_picked_from_alike_alone_and_in_a_batch_of_other_sizes_in_eager_mode(op):
    lengths, keep = [70, 9, 1100, 0, 33], [32, 4, 9, 0, 33]
    features, weights = clusters(sum(lengths), 80), weights_of(sum(lengths))
    together = op.select(features, weights, ragged(lengths), keep, return_order=True)[1]
    start = 0
    for n, k, picks in zip(lengths, keep, together.split(keep), strict=True):
        rows = slice(start, start + n)
        assert op.order(features[rows], weights[rows], k) == (picks - start).tolist()
        start += n


@pytest.mark.parametrize("lengths", [[30, 20, 50], [0, 50, 0, 50, 0]])
@each_op
def test_segments_too_large_for_one_group_are_picked_in_several(impl, monkeypatch, op, lengths):
    features, weights = clusters(100), weights_of(100)
    given = features, weights, ragged(lengths), [n // 3 for n in lengths]
    in_one_group = op.select(*given, return_order=True, impl=impl)
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 4 * 50**2)
    monkeypatch.setattr(reference, "_MAX_BYTES", 4 * 50**2)
    in_several = op.select(*given, return_order=True, impl=impl)
    assert all(map(torch.equal, in_one_group, in_several))


@each_op
def test_reads_strided_features_and_weights(impl, op):
    wide, weights = clusters(40, 48), weights_of(80)[::2]
    for view in (wide[:, 5:37], wide.T[:40, :40]):
        expected = op.order(view.clone(), weights.clone(), 9, impl)
        assert op.order(view, weights, 9, impl) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_op
def test_low_precision_is_compared_in_fp32(impl, op, dtype):
    features, weights = clusters(80, 64, dtype=dtype), weights_of(80, dtype=dtype)
    expected = op.order(features.float(), weights.float(), 40, impl)
    assert op.order(features, weights, 40, impl) == expected


@each_op
def test_autocast_does_not_lower_the_precision(op):
    features, weights = clusters(100, 64), weights_of(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = op.order(features, weights, 50)
    assert lowered == op.order(features, weights, 50)


@each_op
def test_inputs_in_training_are_accepted(impl, op):
    given = clusters(20).requires_grad_(), weights_of(20).requires_grad_()
    assert not op.select(*given, ragged([20]), [5], impl=impl).requires_grad


@each_op
def test_needs_no_value_from_the_device(op):
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths in ([9, 4], [5, 5]):
        n = sum(lengths)
        given = torch.empty(n, 3, device="meta"), torch.empty(n, device="meta")
        picks = op.select(*given, ragged(lengths, "meta"), [3, 2], return_order=True)
        assert [x.shape for x in picks] == [(5,), (5,)]


def ones(*shape, **how):
    return torch.ones(shape, **how)


def call(op, features=None, weights=None, keep=(1,), rows=3, device="cpu", **options):
    features = ones(rows, 2, device=device) if features is None else features
    weights = ones(rows, device=device) if weights is None else weights
    return op.select(features, weights, ragged([rows], device), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda op: call(op, impl="cuda")),
        refusal(
            "kernel dtype",
            ValueError,
            'the kernel does not take torch.float64; pass impl="auto"',
            lambda op: call(
                op,
                ones(3, 2, dtype=torch.float64, device=DEVICE),
                device=DEVICE,
                impl="triton",
            ),
        ),
        refusal(
            "too long",
            ValueError,
            "a segment has {more} rows and the kernel takes {longest}; pass impl=",
            lambda op: call(op, rows=op.longest + 1, device=DEVICE, impl="triton"),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda op: op.select(ones(3, 2), ones(3), [3], [1]),
        ),
        refusal(
            "rank",
            ValueError,
            "{weights} must have 1 dimensions, got shape (3, 1)",
            lambda op: call(op, weights=ones(3, 1)),
        ),
        refusal(
            "dtype",
            TypeError,
            "{weights} must be floating point, got torch.int64",
            lambda op: call(op, weights=ones(3, dtype=torch.int64)),
        ),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 3 but {weights} has 4 rows",
            lambda op: call(op, weights=ones(4)),
        ),
        refusal(
            "features",
            ValueError,
            "the lengths of segments sum to 3 but features has 4 rows",
            lambda op: call(op, ones(4, 2)),
        ),
        refusal(
            "too many",
            ValueError,
            "keep=4 for segment 0, which has 3",
            lambda op: call(op, keep=[4]),
        ),
        refusal(
            "device",
            ValueError,
            "{weights} is on meta but the other arguments are on cpu",
            lambda op: call(op, weights=ones(3, device="meta")),
        ),
    ],
)
@each_op
def test_refuses(op, error, message, call):
    told = message.format(weights=op.weights, longest=op.longest, more=op.longest + 1)
    with pytest.raises(error, match=re.escape(told)):
        call(op)
