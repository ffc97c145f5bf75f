"""`diversity_select`: greedy max-min on cosine distance, k distinct rows whatever the features."""

import re
import sys
import weakref
from unittest import mock

import numpy as np
import oracles
import pytest
import torch
from devices import DEVICE
from diversity_cases import (
    INF,
    NAN,
    ROW,
    check_greedy,
    clusters,
    drawn_weights,
    listed,
    order_of,
    weighted,
    weights_of,
)
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import (
    BATCHES,
    KERNEL,
    THOROUGH,
    batches,
    check_selection,
    fenced_rows,
    ragged,
    refusal,
)

from vtfast.kernels import _distances as distances
from vtfast.kernels import _max_min as max_min
from vtfast.kernels import reference
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.diversity_select import diversity_select

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
diversity_module = sys.modules[diversity_select.__module__]

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
each_weights = pytest.mark.parametrize(
    "weigh", [pytest.param(lambda n: None, id="no weights"), pytest.param(weights_of, id="weights")]
)


@weighted
@THOROUGH
@given(case=batches(max_length=7), data=st.data(), dtype=DTYPES)
def test_agrees_with_the_plain_greedy(weight, case, data, dtype):
    lengths, keep = case
    rows = data.draw(st.lists(ROW, min_size=sum(lengths), max_size=sum(lengths)))
    scale = data.draw(st.sampled_from([1.0, 0.5, 64.0]))
    features = (torch.tensor(rows).view(-1, 4) * scale).to(dtype)
    weights = drawn_weights(data, weight, len(features))
    options = {"weights": weights, "return_order": True}
    index, order = diversity_select(features, ragged(lengths), keep, **options)
    x = features.double().numpy()
    expected = oracles.diversity_select(x, lengths, keep, listed(weights))
    assert order.tolist() == expected
    check_selection(index, lengths, keep)
    assert sorted(expected) == index.tolist()


@weighted
@KERNEL
@given(case=batches(max_length=7), data=st.data(), dtype=st.sampled_from(KERNEL_DTYPES))
def test_the_kernel_agrees_with_the_plain_greedy_and_with_the_reference(weight, case, data, dtype):
    """Between fences of NaN rows."""
    lengths, keep = case
    rows = data.draw(st.lists(ROW, min_size=sum(lengths), max_size=sum(lengths)))
    scale = data.draw(st.sampled_from([1.0, 0.5, 64.0]))
    features = (torch.tensor(rows).view(-1, 4) * scale).to(dtype)
    segments, fenced = ragged(lengths, DEVICE), fenced_rows(features, NAN, DEVICE)
    weights = drawn_weights(data, weight, len(features))
    on_device = None if weights is None else fenced_rows(weights, NAN, DEVICE)
    options = {"weights": on_device, "return_order": True}
    index, order = diversity_select(fenced, segments, keep, **options, impl="triton")
    x = features.double().numpy()
    expected = oracles.diversity_select(x, lengths, keep, listed(weights))
    assert order.tolist() == expected
    check_selection(index, lengths, keep)
    assert sorted(expected) == index.tolist()
    plain = reference.diversity_select(features.to(DEVICE), segments, keep, weights=on_device)
    assert torch.equal(index, plain)


@weighted
@THOROUGH
@given(
    case=batches(max_length=7), data=st.data(), dtype=DTYPES, most=st.sampled_from([0, 500, 3000])
)
def test_the_picks_do_not_depend_on_the_memory_there_is(weight, case, data, dtype, most):
    """Rows of distances are made again where the matrix does not fit; 0 bytes: for every segment.

    At N = 24,576 the matrix once took 3 GB.
    """
    lengths, keep = case
    rows = data.draw(st.lists(ROW, min_size=sum(lengths), max_size=sum(lengths)))
    features = torch.tensor(rows).view(-1, 4).to(dtype)
    weights = drawn_weights(data, weight, len(features))
    options = {"weights": weights, "return_order": True}
    with mock.patch.object(reference, "_MAX_BYTES", most):
        index, order = diversity_select(features, ragged(lengths), keep, **options)
    x = features.double().numpy()
    assert order.tolist() == oracles.diversity_select(x, lengths, keep, listed(weights))
    check_selection(index, lengths, keep)


@each_weights
@pytest.mark.parametrize("most", [8_000, 40_000, 400_000])
def test_every_pick_by_rows_is_the_farthest(monkeypatch, most, weigh):
    """As in `test_every_pick_is_the_farthest_given_the_picks_before_it`, with copies of rows."""
    features, weights = clusters(300, 24, dtype=torch.bfloat16), weigh(300)
    features[200:220] = features[:20]
    monkeypatch.setattr(reference, "_MAX_BYTES", most)
    check_greedy(features, order_of(features, 300, weights=weights), 280, weights)


@each_weights
def test_rows_made_ahead_give_the_picks_of_rows_made_one_by_one(monkeypatch, weigh):
    """CPU tensors take the former; what other devices run must give the same picks."""
    features = torch.cat([clusters(60), torch.zeros(2, 16), clusters(30)[:9], torch.eye(16)])
    features[70] = NAN
    monkeypatch.setattr(reference, "_MAX_BYTES", 20_000)
    on_cpu = order_of(features, 87, weights=weigh(87))

    def one_by_one(x, nearest, limit, order, most):
        max_min._pick_by_rows(x, *map(torch.from_numpy, (nearest, limit, order)))

    monkeypatch.setattr(max_min, "_pick_by_rows_numpy", one_by_one)
    assert on_cpu == order_of(features, 87, weights=weigh(87))


def test_few_rows_of_distances_are_made_in_vain(monkeypatch):
    """At most twice as many as were picked, and 32 each time: no input makes it far slower."""
    made, fill = [], max_min._fill_rows
    monkeypatch.setattr(reference, "_MAX_BYTES", 2**20)
    monkeypatch.setattr(
        max_min, "_fill_rows", lambda x, rows, out: (made.append(len(rows)), fill(x, rows, out))
    )
    order_of(clusters(700), 350)
    assert sum(made) <= 2 * 350 + 32 * len(made)
    assert len(made) < 350 / 8


@each_weights
@pytest.mark.parametrize(
    ("n", "dim", "k", "dtype"),
    [
        (1, 8, 1, torch.float32),
        (63, 40, 63, torch.float16),
        (65, 129, 30, torch.float32),
        (65, 129, 30, torch.bfloat16),
        (130, 64, 58, torch.float32),
    ],
)
def test_the_kernel_is_greedy_on_its_own_distances(device, n, dim, k, dtype, weigh):
    """Its picks are those of the plain loop on its own matrix, which is right to fp32 rounding."""
    features = clusters(n, dim, dtype=dtype)
    features[n // 2] = features[0]
    fenced, segments = fenced_rows(features, NAN, device), ragged([n], device)
    weights = weigh(n)
    on_device = None if weights is None else fenced_rows(weights, NAN, device)
    x, inverse, nearest = distances.norms(fenced, on_device)
    kept = ragged([k], device).cu_seqlens
    matrix, starts = distances.distance_matrices(
        x, inverse, nearest, segments.cu_seqlens, kept, [n], on_device
    )
    assert starts.tolist() == [0, len(matrix)]
    matrix = matrix.view(n, -1)[:, :n].cpu()
    expected = oracles.cosine_distances(features.double().numpy())
    expected *= 1.0 if weights is None else weights.double().cpu().numpy()
    assert np.abs(matrix.double().numpy() - expected).max() < 1e-5
    picks = max_min.greedy(matrix.clone()[None], torch.full((1, n), INF), k)
    assert order_of(fenced, k, "triton", on_device) == picks[0].tolist()


@each_weights
@pytest.mark.parametrize(
    ("n", "dim", "k", "dtype"),
    [
        (63, 16, 30, torch.float32),
        (577, 64, 58, torch.bfloat16),
        (64, 1024, 64, torch.float32),
        (64, 1024, 64, torch.float16),
    ],
)
def test_every_pick_is_the_farthest_given_the_picks_before_it(impl, n, dim, k, dtype, weigh):
    """Replayed on the fp64 matrix: rounding may choose between rows 1e-5 apart, no more."""
    features, weights = clusters(n, dim, dtype=dtype), weigh(n)
    check_greedy(features, order_of(features, k, impl, weights), k, weights)


def test_starts_with_the_row_whose_nearest_other_row_is_farthest(impl):
    close_pair_and_a_loner = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.5]])
    assert order_of(close_pair_and_a_loner, 1, impl) == [2]


def test_only_directions_matter(impl):
    features = clusters(40)
    lengths_of_vectors = torch.logspace(-3, 3, 40)[:, None]
    scaled = features * 2.0 ** lengths_of_vectors.log2().round()
    assert order_of(scaled, 20, impl) == order_of(features, 20, impl)


def test_breaks_ties_by_position(impl):
    assert order_of(torch.eye(5), 5, impl) == [0, 1, 2, 3, 4]


def test_picks_distinct_rows_even_among_duplicates(impl):
    features = clusters(140)
    features[129:] = features[:11]
    assert len(set(order_of(features, 140, impl))) == 140


def test_copies_of_one_row_are_all_distinct_picks(impl):
    assert order_of(torch.ones(6, 3), 6, impl) == [0, 1, 2, 3, 4, 5]


def test_a_zero_row_is_at_distance_one_from_all(impl):
    """Farther than a near-duplicate, nearer than the opposite direction."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0], [-1.0, 0.1]])
    assert order_of(features, 4, impl) == [2, 0, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-110, -75, -68, -56, 50])
def test_tiny_rows_count_as_zero_and_others_as_their_directions(impl, dtype, power):
    """Squares too small for fp32 once gave the reference rows of infinity, and repeated picks."""
    rows = torch.nn.functional.normalize(clusters(20)).to(dtype)
    scaled = rows * 2.0**power  # powers of 2: no bit of a row changes
    alike = rows if power > -63 else torch.zeros_like(rows)
    assert order_of(scaled, 12, impl) == order_of(alike, 12, impl)


@pytest.mark.parametrize("broken", [NAN, INF, -INF, 1e30])
def test_rows_that_are_not_finite_come_last_and_change_nothing(impl, broken):
    finite = clusters(12)
    features = torch.cat([finite[:3], finite.new_full((1, 16), broken), finite[3:], finite[:1]])
    features[-1, 5] = NAN
    kept = [0, 1, 2, *range(4, 13)]
    order = order_of(features, 14, impl)
    assert order[:12] == [kept[i] for i in order_of(finite, 12, impl)]
    assert order[12:] == [3, 13]


def test_one_row_alone_is_picked(impl):
    assert order_of(torch.zeros(1, 4), 1, impl) == [0]
    assert order_of(torch.zeros(1, 4), 1, impl, torch.zeros(1)) == [0]


@pytest.mark.parametrize(("lengths", "keep"), BATCHES[:-1])  # 577 rows are among those above
def test_picks_are_exact_distinct_ascending_rows(impl, lengths, keep):
    features = clusters(sum(lengths))
    check_selection(diversity_select(features, ragged(lengths), keep, impl=impl), lengths, keep)


@each_weights
@pytest.mark.parametrize("lengths", [[30, 20, 50], [0, 50, 0, 50, 0]])
def test_segments_too_large_for_one_group_are_picked_in_several(impl, monkeypatch, lengths, weigh):
    features, segments = clusters(100), ragged(lengths)
    keep, options = [n // 3 for n in lengths], {"weights": weigh(100), "return_order": True}
    in_one_group = diversity_select(features, segments, keep, **options, impl=impl)
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 2 * 4 * 50**2)
    monkeypatch.setattr(reference, "_MAX_BYTES", 2 * (6 * 50**2 + 5 * 50 * 16))
    in_several = diversity_select(features, segments, keep, **options, impl=impl)
    assert all(map(torch.equal, in_one_group, in_several))


def test_the_matrices_of_a_group_are_freed_before_the_next_are_made(monkeypatch, device):
    """Otherwise the limit on a group would not limit the whole call."""
    make, made = diversity_module.distance_matrices, []

    def make_one(*arguments):
        assert [matrix() for matrix in made] == [None] * len(made)
        matrix, starts = make(*arguments)
        made.append(weakref.ref(matrix))
        return matrix, starts

    monkeypatch.setattr(diversity_module, "distance_matrices", make_one)
    monkeypatch.setattr(distances, "MAX_MATRIX_BYTES", 1)
    segments, features = ragged([9, 5, 7], device), clusters(21).to(device)
    diversity_select(features, segments, [3, 2, 2], impl="triton")
    assert len(made) == 3


def test_one_group_of_the_kernel_never_needs_more_than_its_cap():
    lengths = [16384, 0, 16384, 576, 576, 8000, 16000, 1]
    groups = list(diversity_module._groups(lengths))
    assert [n for group in groups for n in lengths[group]] == lengths
    assert max(sum(4 * n * (n + 15) for n in lengths[group]) for group in groups) < 2**30 + 2**20


def test_reads_strided_features(impl):
    wide = clusters(40, 48)
    for view in (wide[:, 5:37], wide[::2], wide.T[:40, :40]):
        assert order_of(view, 9, impl) == order_of(view.clone(), 9, impl)


def test_reads_features_of_no_width(impl):
    assert order_of(torch.zeros(5, 0), 3, impl) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_features_are_compared_in_fp32(impl, dtype):
    features = clusters(80, 64, dtype=dtype)
    assert order_of(features, 40, impl) == order_of(features.float(), 40, impl)


def test_autocast_does_not_lower_the_precision():
    features = clusters(100, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = order_of(features, 50)
    assert lowered == order_of(features, 50)


@pytest.mark.parametrize("n", [256, 301, 1000])
def test_products_of_two_halves_are_those_of_the_whole(monkeypatch, n):
    features = torch.cat([clusters(n - 3), torch.zeros(1, 16), torch.full((2, 16), NAN)])
    features = features[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved, limits = max_min.distances(features, ragged([n]), 2**20)
    monkeypatch.setattr(max_min, "_MIN_ROWS_TO_HALVE", n + 1)
    whole, expected = max_min.distances(features, ragged([n]), 2**20)
    torch.testing.assert_close(halved, whole, rtol=0, atol=1e-6)
    assert torch.equal(limits, expected)


def test_features_in_training_are_accepted(impl):
    features, weights = clusters(20).requires_grad_(), torch.ones(20).requires_grad_()
    assert not diversity_select(features, ragged([20]), [5], impl=impl).requires_grad
    options = {"weights": weights, "impl": impl}
    assert not diversity_select(features, ragged([20]), [5], **options).requires_grad


def test_the_numpy_loop_of_a_cpu_agrees_with_the_general_loop(monkeypatch):
    """CPU tensors take a NumPy loop; what other devices run must give the same picks."""
    features = torch.cat([clusters(60), torch.zeros(2, 16), clusters(30)[:9], torch.eye(16)])
    features[70] = NAN
    on_cpu = diversity_select(features, ragged([60, 27]), [60, 20], return_order=True)[1]
    monkeypatch.setattr(max_min, "_greedy_loop_numpy", max_min._greedy_loop)
    general = diversity_select(features, ragged([60, 27]), [60, 20], return_order=True)[1]
    assert torch.equal(on_cpu, general)


def test_needs_no_value_from_the_device(monkeypatch):
    """Meta tensors have no values: whatever would read one back raises."""
    for lengths, most in (([9, 4], 2**20), ([5, 5], 2**20), ([9, 4], 0)):
        monkeypatch.setattr(reference, "_MAX_BYTES", most)
        features = torch.empty(sum(lengths), 3, device="meta")
        for weights in (None, features[:, 0]):
            options = {"weights": weights, "return_order": True}
            index, order = diversity_select(features, ragged(lengths, "meta"), [3, 2], **options)
            assert index.shape == order.shape == (5,)


def select(features=None, keep=(1,), **options):
    features = torch.ones(3, 2) if features is None else features
    return diversity_select(features, ragged([3]), keep, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: select(impl="cuda")),
        refusal(
            "kernel dtype",
            ValueError,
            'the kernel does not take torch.float64; pass impl="auto"',
            lambda: diversity_select(
                torch.ones(3, 2, dtype=torch.float64, device=DEVICE),
                ragged([3], DEVICE),
                [1],
                impl="triton",
            ),
        ),
        refusal(
            "too long",
            ValueError,
            "a segment has 16385 rows and the kernel takes 16384; pass impl=",
            lambda: diversity_select(
                torch.ones(16385, 1, device=DEVICE), ragged([16385], DEVICE), [1], impl="triton"
            ),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: diversity_select(torch.ones(3, 2), [3], [1]),
        ),
        refusal(
            "rank",
            ValueError,
            "features must have 2 dimensions, got shape (3,)",
            lambda: select(torch.ones(3)),
        ),
        refusal(
            "dtype",
            TypeError,
            "features must be floating point, got torch.int64",
            lambda: select(torch.ones(3, 2, dtype=torch.int64)),
        ),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 3 but features has 4 rows",
            lambda: select(torch.ones(4, 2)),
        ),
        refusal(
            "too many",
            ValueError,
            "keep=4 for segment 0, which has 3 rows",
            lambda: select(keep=[4]),
        ),
        refusal("negative", ValueError, "keep=-1 for segment 0", lambda: select(keep=[-1])),
        refusal("count", ValueError, "keep has 0 entries for 1 segments", lambda: select(keep=[])),
        refusal(
            "device",
            ValueError,
            "features is on meta but the other arguments are on cpu",
            lambda: select(torch.ones(3, 2, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
