"""`dpp_select`: greedy picks by the determinant of quality and cosines, k distinct rows always."""

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
from parity import largest_determinant_each_time
from peak_memory import extra_bytes
from ragged_cases import BATCHES, KERNEL, check_selection, ragged, refusal

from vtfast.kernels import _determinant as determinant
from vtfast.kernels import _distances as distances
from vtfast.kernels import reference
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.dpp_select import dpp_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
module = sys.modules[dpp_select.__module__]


def order(features, quality, k, impl="auto"):
    return order_of(dpp_select, features, quality, k, impl).tolist()


@pytest.fixture
def general_loop(monkeypatch):
    """What other devices than CPUs run."""

    def loop(*tensors):
        *tensors, steps = tensors
        batch = [torch.from_numpy(x)[None] for x in tensors]
        return determinant._greedy_loop(*batch, steps)[0].numpy()

    monkeypatch.setattr(determinant, "_greedy_loop_numpy", loop)


@MANY
@given(cases())
def test_agrees_with_the_plain_greedy(case):
    check_against(dpp_select, oracles.dpp_select, case)


@KERNEL
@given(cases(st.sampled_from(KERNEL_DTYPES)))
def test_the_kernel_agrees_with_the_plain_greedy_and_with_the_reference(case):
    index, _ = check_against(dpp_select, oracles.dpp_select, case, DEVICE, "triton")
    features, quality, lengths, keep = case
    where = ragged(lengths, DEVICE), keep
    expected = reference.dpp_select(features.to(DEVICE), quality.to(DEVICE), *where)
    assert torch.equal(index, expected)


@pytest.mark.usefixtures("general_loop")
@KERNEL
@given(cases(DTYPES))
def test_the_loop_of_other_devices_agrees_with_the_plain_greedy_in_eager_mode(case):
    check_against(dpp_select, oracles.dpp_select, case)


@pytest.mark.parametrize(
    ("n", "dim", "k", "dtype"),
    [
        (63, 16, 30, torch.float32),
        (577, 64, 58, torch.bfloat16),
        (64, 1024, 64, torch.float32),
        (64, 1024, 64, torch.float16),
    ],
)
def test_every_pick_has_the_largest_gain_given_the_picks_before_it(impl, n, dim, k, dtype):
    """Replayed in fp64: rounding may choose between rows with residuals 2e-5 apart, no more."""
    features, quality = clusters(n, dim, dtype=dtype), weights_of(n, dtype=dtype)
    picks = order_of(dpp_select, features, quality, k, impl)
    assert not largest_determinant_each_time(features, quality, [n], [k])(picks)


def test_the_replay_finds_a_pick_that_is_not_the_largest():
    features, quality = clusters(40, 64), weights_of(40)
    picks = order_of(dpp_select, features, quality, 20)
    picks[[3, 12]] = picks[[12, 3]]
    assert "pick 3 gains" in largest_determinant_each_time(features, quality, [40], [20])(picks)


def test_the_product_of_gains_is_the_determinant():
    """What the greedy is greedy for: no other row makes it larger, at any step."""
    features, quality = clusters(30, 48), weights_of(30)
    picks = order(features, quality, 6)
    x = torch.nn.functional.normalize(features.double(), dim=1) * quality[:, None]
    kernel = (x @ x.T).numpy()
    for done in range(6):
        dets = [np.linalg.det(kernel[np.ix_(rows, rows)]) for i in range(30)
                for rows in [[*picks[:done], i]]]  # fmt: skip
        assert dets[picks[done]] >= max(dets) * (1 - 1e-5)


def test_starts_with_the_row_of_the_best_quality(impl):
    assert order(torch.eye(4), torch.tensor([1.0, 2.0, 3.0, 0.5]), 4, impl) == [2, 1, 0, 3]


def test_a_row_like_a_picked_one_has_to_be_better(impl):
    """Its cosine to the first pick is 0.8, so its residual is 0.36."""
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    assert order(rows, torch.tensor([3.0, 2.0, 1.0]), 2, impl) == [0, 1]
    assert order(rows, torch.tensor([3.0, 1.5, 1.0]), 2, impl) == [0, 2]


def test_nearly_equal_gains_go_to_the_lowest_row(impl):
    """Within 2^-17 of the largest; further apart the larger one is picked."""
    near, far = 1 + 2.0**-19, 1 + 2.0**-15
    assert order(torch.eye(3), torch.tensor([1.0, near, 1.0]), 3, impl) == [0, 1, 2]
    assert order(torch.eye(3), torch.tensor([1.0, far, 1.0]), 3, impl) == [1, 0, 2]


def test_copies_of_a_picked_row_have_no_gain_though_rounded(impl):
    """Without a limit they would have 1e-7 of it, in an order that depends on the device."""
    features = clusters(12, 48)
    features = torch.cat([features, features[:5], -features[5:7]])
    picks = order(features, weights_of(19).clamp(min=0.1), 19, impl)
    copies = {tuple(sorted(pair)) for pair in zip([*range(7)], [*range(12, 19)], strict=True)}
    assert len({row if row < 12 else row - 12 for row in picks[:12]}) == 12
    assert picks[12:] == sorted(picks[12:])
    assert all((a in picks[:12]) != (b in picks[:12]) for a, b in copies)


def test_where_no_row_has_a_gain_the_lowest_ones_are_picked(impl):
    """At rank 2 after two picks; with a quality of 0 at once."""
    plane = clusters(7, 2)
    picks = order(plane, torch.ones(7), 7, impl)
    assert picks[2:] == sorted(picks[2:])
    assert order(clusters(5), torch.zeros(5), 5, impl) == [0, 1, 2, 3, 4]


def test_only_directions_and_the_magnitude_of_quality_matter(impl):
    features, quality = clusters(40, 48), weights_of(40)
    expected = order(features, quality, 20, impl)
    scaled = features * 2.0 ** torch.arange(-20, 20)[:, None]
    assert order(scaled, -quality, 20, impl) == expected
    assert order(features, quality * 2.0**-30, 20, impl) == expected


def test_a_zero_row_has_no_gain(impl):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-30, 0.0], [0.0, 1.0]])
    assert order(rows, torch.tensor([9.0, 1.0, 9.0, 1.0]), 4, impl) == [1, 3, 0, 2]


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e30])
def test_rows_and_qualities_that_are_not_finite_come_last_and_change_nothing(impl, broken):
    finite, quality = clusters(12, 48), weights_of(12)
    features = torch.cat([finite[:3], finite.new_full((1, 48), broken), finite[3:], finite[:1]])
    qualities = torch.cat([quality[:3], torch.ones(1), quality[3:], torch.tensor([broken])])
    kept = [0, 1, 2, *range(4, 13)]
    picks = order(features, qualities, 14, impl)
    assert picks[:12] == [kept[i] for i in order(finite, quality, 12, impl)]
    assert picks[12:] == [3, 13]


@pytest.mark.parametrize(("lengths", "keep"), BATCHES[:-1])  # 577 rows are among those above
def test_picks_are_exact_distinct_ascending_rows(impl, lengths, keep):
    features, quality = clusters(sum(lengths)), weights_of(sum(lengths))
    index = dpp_select(features, quality, ragged(lengths), keep, impl=impl)
    check_selection(index, lengths, keep)


def test_a_segment_is_picked_from_alike_alone_and_in_a_batch_of_other_sizes_in_eager_mode():
    lengths, keep = [70, 9, 1100, 0, 33], [32, 4, 9, 0, 33]
    features, quality = clusters(sum(lengths), 80), weights_of(sum(lengths))
    together = dpp_select(features, quality, ragged(lengths), keep, return_order=True)[1]
    start = 0
    for n, k, picks in zip(lengths, keep, together.split(keep), strict=True):
        rows = slice(start, start + n)
        assert order(features[rows], quality[rows], k) == (picks - start).tolist()
        start += n


@pytest.mark.parametrize("lengths", [[30, 20, 50], [0, 50, 0, 50, 0]])
def test_segments_too_large_for_one_group_are_picked_in_several(impl, monkeypatch, lengths):
    features, quality = clusters(100), weights_of(100)
    given = features, quality, ragged(lengths), [n // 3 for n in lengths]
    in_one_group = dpp_select(*given, return_order=True, impl=impl)
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 4 * 50**2)
    monkeypatch.setattr(reference, "_MAX_BYTES", 4 * 50**2)
    in_several = dpp_select(*given, return_order=True, impl=impl)
    assert all(map(torch.equal, in_one_group, in_several))


def test_matrix_and_vectors_of_a_group_keep_to_the_limit(monkeypatch, device):
    """10 x 16 distances and 5 x 16 numbers of vectors are 960 bytes a segment."""
    sizes, make = [], module.distance_matrices
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 960)
    monkeypatch.setattr(
        module, "distance_matrices", lambda *x: (sizes.append(len(x[-1])), make(*x))[1]
    )
    given = clusters(50).to(device), weights_of(50).to(device), ragged([10] * 5, device), [5] * 5
    dpp_select(*given, impl="triton")
    assert sizes == [2, 2, 1]


def test_keeps_to_the_limit_that_it_names():
    n, k, width = 1500, 700, 40
    features, quality = clusters(n, width), weights_of(n)
    taken = extra_bytes(lambda: dpp_select(features, quality, ragged([n]), [k]))
    assert taken < 6 * n**2 + 4 * n * k + 5 * n * width + 2**20


def test_reads_strided_features_and_qualities(impl):
    wide, quality = clusters(40, 48), weights_of(80)[::2]
    for view in (wide[:, 5:37], wide.T[:40, :40]):
        expected = order(view.clone(), quality.clone(), 9, impl)
        assert order(view, quality, 9, impl) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_compared_in_fp32(impl, dtype):
    features, quality = clusters(80, 64, dtype=dtype), weights_of(80, dtype=dtype)
    expected = order(features.float(), quality.float(), 40, impl)
    assert order(features, quality, 40, impl) == expected


def test_autocast_does_not_lower_the_precision():
    features, quality = clusters(100, 64), weights_of(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = order(features, quality, 50)
    assert lowered == order(features, quality, 50)


def test_inputs_in_training_are_accepted(impl):
    given = clusters(20).requires_grad_(), weights_of(20).requires_grad_()
    assert not dpp_select(*given, ragged([20]), [5], impl=impl).requires_grad


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths in ([9, 4], [5, 5]):
        n = sum(lengths)
        given = torch.empty(n, 3, device="meta"), torch.empty(n, device="meta")
        picks = dpp_select(*given, ragged(lengths, "meta"), [3, 2], return_order=True)
        assert [x.shape for x in picks] == [(5,), (5,)]


def select(features=None, quality=None, keep=(1,), **options):
    features = torch.ones(3, 2) if features is None else features
    quality = torch.ones(3) if quality is None else quality
    return dpp_select(features, quality, ragged([3]), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal(
            "kernel dtype",
            ValueError,
            'the kernel does not take torch.float64; pass impl="auto"',
            lambda: dpp_select(
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
            "a segment has 4097 rows and the kernel takes 4096; pass impl=",
            lambda: dpp_select(
                torch.ones(4097, 1, device=DEVICE),
                torch.ones(4097, device=DEVICE),
                ragged([4097], DEVICE),
                [1],
                impl="triton",
            ),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: dpp_select(torch.ones(3, 2), torch.ones(3), [3], [1]),
        ),
        refusal(
            "rank",
            ValueError,
            "quality must have 1 dimensions, got shape (3, 1)",
            lambda: select(quality=torch.ones(3, 1)),
        ),
        refusal(
            "dtype",
            TypeError,
            "quality must be floating point, got torch.int64",
            lambda: select(quality=torch.ones(3, dtype=torch.int64)),
        ),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 3 but quality has 4 rows",
            lambda: select(quality=torch.ones(4)),
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
            "quality is on meta but the other arguments are on cpu",
            lambda: select(quality=torch.ones(3, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
