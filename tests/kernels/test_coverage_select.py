"""`coverage_select`: greedy picks by weighted coverage, k distinct rows always."""

import re
import sys

import numpy as np
import oracles
import pytest
import torch
from devices import DEVICE
from diversity_cases import INF, NAN, clusters
from gain_cases import DTYPES, MANY, cases, check_against, order_of, weights_of
from hypothesis import given
from hypothesis import strategies as st
from parity import best_coverage_each_time
from peak_memory import extra_bytes
from ragged_cases import BATCHES, KERNEL, check_selection, ragged, refusal

from vtfast.kernels import _coverage as coverage
from vtfast.kernels import _distances as distances
from vtfast.kernels import reference
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.coverage_select import coverage_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
module = sys.modules[coverage_select.__module__]


def seeded():
    return torch.Generator().manual_seed(0)


def order(features, weights, k, impl="auto"):
    return order_of(coverage_select, features, weights, k, impl).tolist()


@pytest.fixture
def general_loop(monkeypatch):
    """What other devices than CPUs run."""

    def loop(*tensors):
        *tensors, steps = tensors
        batch = [torch.from_numpy(x)[None] for x in tensors]
        return coverage._greedy_loop(*batch, steps)[0].numpy()

    monkeypatch.setattr(coverage, "_greedy_loop_numpy", loop)


@MANY
@given(cases())
def test_agrees_with_the_plain_greedy(case):
    check_against(coverage_select, oracles.coverage_select, case)


@KERNEL
@given(cases(st.sampled_from(KERNEL_DTYPES)))
def test_the_kernel_agrees_with_the_plain_greedy_and_with_the_reference(case):
    index, _ = check_against(coverage_select, oracles.coverage_select, case, DEVICE, "triton")
    features, weights, lengths, keep = case
    where = ragged(lengths, DEVICE), keep
    expected = reference.coverage_select(features.to(DEVICE), weights.to(DEVICE), *where)
    assert torch.equal(index, expected)


@pytest.mark.usefixtures("general_loop")
@KERNEL
@given(cases(DTYPES))
def test_the_loop_of_other_devices_agrees_with_the_plain_greedy_in_eager_mode(case):
    check_against(coverage_select, oracles.coverage_select, case)


@pytest.mark.parametrize(
    ("n", "dim", "k", "dtype"),
    [
        (63, 16, 30, torch.float32),
        (577, 64, 14, torch.bfloat16),
        (64, 1024, 64, torch.float32),
        (64, 1024, 64, torch.float16),
    ],
)
def test_every_pick_has_the_largest_gain_given_the_picks_before_it(impl, n, dim, k, dtype):
    """Replayed in fp64: rounding may choose between rows whose sums are 2^-20 n apart, no more."""
    features, weights = clusters(n, dim, dtype=dtype), weights_of(n, dtype=dtype)
    picks = order_of(coverage_select, features, weights, k, impl)
    assert not best_coverage_each_time(features, weights, [n], [k])(picks)


def test_every_pick_has_the_largest_gain_when_all_weights_are_one():
    """More rows are evaluated at a step then than at a time."""
    features, weights = torch.randn(300, 256, generator=seeded()), torch.ones(300)
    picks = order_of(coverage_select, features, weights, 150)
    assert not best_coverage_each_time(features, weights, [300], [150])(picks)


def test_the_replay_finds_a_pick_that_is_not_the_largest():
    features, weights = clusters(40, 64), weights_of(40)
    picks = order_of(coverage_select, features, weights, 20)
    picks[[1, 12]] = picks[[12, 1]]
    assert "pick 1 gains" in best_coverage_each_time(features, weights, [40], [20])(picks)


def test_few_rows_are_evaluated_after_the_first_pick(monkeypatch):
    """Otherwise a step would cost n lines of the matrix, 400 of these."""
    evaluated, take = [], np.take
    monkeypatch.setattr(np, "take", lambda *x, **o: (evaluated.append(len(x[1])), take(*x, **o))[1])
    order(clusters(400, 64), weights_of(400), 100)
    assert sum(evaluated) - 400 < 100 * 40


def test_starts_with_the_row_that_is_most_like_all(impl):
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, -1.0]])
    assert order(rows, torch.ones(4), 1, impl) == [1]
    assert order(rows, torch.tensor([1.0, 1.0, 1.0, 4.0]), 1, impl) == [3]


def test_then_covers_what_is_not_covered(impl):
    """Rows 0 and 1 have larger sums than row 3 at first, but are like row 2."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    assert order(rows, torch.ones(4), 3, impl) == [2, 3, 0]


def test_opposite_rows_do_not_cover_one_another(impl):
    """A cosine below 0 neither adds to a gain nor takes from it."""
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    assert order(rows, torch.ones(3), 3, impl) == [1, 0, 2]


def test_nearly_equal_gains_go_to_the_lowest_row(impl):
    """Within 2^-17 of the largest; further apart the larger one is picked."""
    near, far = 1 + 2.0**-18, 1 + 2.0**-14
    assert order(torch.eye(3), torch.tensor([1.0, near, 1.0]), 3, impl) == [0, 1, 2]
    assert order(torch.eye(3), torch.tensor([1.0, far, 1.0]), 3, impl) == [1, 0, 2]


def test_copies_of_picked_rows_have_no_gain_though_rounded(impl):
    """Without a limit they would have 1e-7 of it, in an order that depends on the device."""
    features = clusters(12, 48)
    picks = order(torch.cat([features, features[:5]]), weights_of(17).clamp(min=0.1), 17, impl)
    assert {row if row < 12 else row - 12 for row in picks[:12]} == {*range(12)}
    assert picks[12:] == sorted(picks[12:])


def test_where_no_row_has_a_gain_the_lowest_ones_are_picked(impl):
    assert order(torch.ones(6, 3), torch.ones(6), 6, impl) == [0, 1, 2, 3, 4, 5]
    assert order(clusters(5), torch.zeros(5), 5, impl) == [0, 1, 2, 3, 4]
    assert order(clusters(5), -torch.ones(5), 5, impl) == [0, 1, 2, 3, 4]


def test_only_directions_matter(impl):
    features, weights = clusters(40, 48), weights_of(40)
    scaled = features * 2.0 ** torch.arange(-20, 20)[:, None]
    assert order(scaled, weights, 20, impl) == order(features, weights, 20, impl)


def test_a_zero_row_covers_nothing_and_cannot_be_covered(impl):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-30, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([9.0, 1.0, 9.0, 1.0]), 4, impl) == [1, 3, 0, 2]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e30])
def test_rows_that_are_not_finite_come_last_and_change_nothing(impl, broken):
    finite, weights = clusters(12, 48), weights_of(12)
    features = torch.cat([finite[:3], finite.new_full((1, 48), broken), finite[3:], finite[:1]])
    features[-1, 5] = NAN
    more = torch.cat([weights[:3], torch.ones(1), weights[3:], torch.ones(1)])
    kept = [0, 1, 2, *range(4, 13)]
    picks = order(features, more, 14, impl)
    assert picks[:12] == [kept[i] for i in order(finite, weights, 12, impl)]
    assert picks[12:] == [3, 13]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 2.0**100])
def test_rows_whose_weight_is_not_finite_come_last_but_are_covered(impl, broken):
    """Row 0 is picked first for their sake, where row 3 alone has more weight."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([1.0, broken, broken, 2.0]), 4, impl) == [0, 3, 1, 2]


@pytest.mark.parametrize(("lengths", "keep"), BATCHES[:-1])  # 577 rows are among those above
def test_picks_are_exact_distinct_ascending_rows(impl, lengths, keep):
    features, weights = clusters(sum(lengths)), weights_of(sum(lengths))
    index = coverage_select(features, weights, ragged(lengths), keep, impl=impl)
    check_selection(index, lengths, keep)


def test_a_segment_is_picked_from_alike_alone_and_in_a_batch_of_other_sizes_in_eager_mode():
    lengths, keep = [70, 9, 1100, 0, 33], [32, 4, 9, 0, 33]
    features, weights = clusters(sum(lengths), 80), weights_of(sum(lengths))
    together = coverage_select(features, weights, ragged(lengths), keep, return_order=True)[1]
    start = 0
    for n, k, picks in zip(lengths, keep, together.split(keep), strict=True):
        rows = slice(start, start + n)
        assert order(features[rows], weights[rows], k) == (picks - start).tolist()
        start += n


@pytest.mark.parametrize("lengths", [[30, 20, 50], [0, 50, 0, 50, 0]])
def test_segments_too_large_for_one_group_are_picked_in_several(impl, monkeypatch, lengths):
    features, weights = clusters(100), weights_of(100)
    given = features, weights, ragged(lengths), [n // 3 for n in lengths]
    in_one_group = coverage_select(*given, return_order=True, impl=impl)
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 4 * 50**2)
    monkeypatch.setattr(reference, "_MAX_BYTES", 4 * 50**2)
    in_several = coverage_select(*given, return_order=True, impl=impl)
    assert all(map(torch.equal, in_one_group, in_several))


def test_segments_of_one_tile_share_a_group(monkeypatch, device):
    """Others do not, since the order in which numbers are added depends on the tile."""
    sizes = []
    monkeypatch.setattr(module, "_pick_group", lambda *x: sizes.append(list(x[6])))
    lengths = [10, 1024, 1025, 3]
    n = sum(lengths)
    given = clusters(n, 4).to(device), weights_of(n).to(device), ragged(lengths, device)
    coverage_select(*given, [1, 1, 1, 1], impl="triton")
    assert sizes == [[10, 1024], [1025], [3]]


def test_keeps_to_the_limit_that_it_names():
    n, width = 1500, 40
    features, weights = clusters(n, width), weights_of(n)
    taken = extra_bytes(lambda: coverage_select(features, weights, ragged([n]), [700]))
    assert taken < 6 * n**2 + 5 * n * width + 2**20


def test_reads_strided_features_and_weights(impl):
    wide, weights = clusters(40, 48), weights_of(80)[::2]
    for view in (wide[:, 5:37], wide.T[:40, :40]):
        expected = order(view.clone(), weights.clone(), 9, impl)
        assert order(view, weights, 9, impl) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_compared_in_fp32(impl, dtype):
    features, weights = clusters(80, 64, dtype=dtype), weights_of(80, dtype=dtype)
    expected = order(features.float(), weights.float(), 40, impl)
    assert order(features, weights, 40, impl) == expected


def test_autocast_does_not_lower_the_precision():
    features, weights = clusters(100, 64), weights_of(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = order(features, weights, 50)
    assert lowered == order(features, weights, 50)


def test_inputs_in_training_are_accepted(impl):
    given = clusters(20).requires_grad_(), weights_of(20).requires_grad_()
    assert not coverage_select(*given, ragged([20]), [5], impl=impl).requires_grad


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths in ([9, 4], [5, 5]):
        n = sum(lengths)
        given = torch.empty(n, 3, device="meta"), torch.empty(n, device="meta")
        picks = coverage_select(*given, ragged(lengths, "meta"), [3, 2], return_order=True)
        assert [x.shape for x in picks] == [(5,), (5,)]


def select(features=None, weights=None, keep=(1,), **options):
    features = torch.ones(3, 2) if features is None else features
    weights = torch.ones(3) if weights is None else weights
    return coverage_select(features, weights, ragged([3]), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal(
            "kernel dtype",
            ValueError,
            'the kernel does not take torch.float64; pass impl="auto"',
            lambda: coverage_select(
                torch.ones(3, 2, dtype=torch.float64, device=DEVICE),
                torch.ones(3, device=DEVICE),
                ragged([3], DEVICE),
                [1],
                impl="triton",
            ),
        ),
        refusal(
            "too long",
            ValueError,
            "a segment has 8193 rows and the kernel takes 8192; pass impl=",
            lambda: coverage_select(
                torch.ones(8193, 1, device=DEVICE),
                torch.ones(8193, device=DEVICE),
                ragged([8193], DEVICE),
                [1],
                impl="triton",
            ),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: coverage_select(torch.ones(3, 2), torch.ones(3), [3], [1]),
        ),
        refusal(
            "rank",
            ValueError,
            "weights must have 1 dimensions, got shape (3, 1)",
            lambda: select(weights=torch.ones(3, 1)),
        ),
        refusal(
            "dtype",
            TypeError,
            "weights must be floating point, got torch.int64",
            lambda: select(weights=torch.ones(3, dtype=torch.int64)),
        ),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 3 but weights has 4 rows",
            lambda: select(weights=torch.ones(4)),
        ),
        refusal(
            "features",
            ValueError,
            "the lengths of segments sum to 3 but features has 4 rows",
            lambda: select(torch.ones(4, 2)),
        ),
        refusal(
            "too many", ValueError, "keep=4 for segment 0, which has 3", lambda: select(keep=[4])
        ),
        refusal(
            "device",
            ValueError,
            "weights is on meta but the other arguments are on cpu",
            lambda: select(weights=torch.ones(3, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
