"""Long segments of `diversity_select`: dot products by the library, and picks in rounds.

The rounds are made small here, so that short segments take several: two programs, four candidates.
"""

import sys

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
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import batches, check_selection, fenced_rows, ragged

from vtfast.kernels import _distances, _dot_products, _greedy_rounds, reference
from vtfast.kernels._checks import KERNEL_DTYPES
from vtfast.kernels.diversity_select import diversity_select

diversity_module = sys.modules[diversity_select.__module__]


@pytest.fixture(autouse=True)
def small_rounds(monkeypatch):
    monkeypatch.setattr(diversity_module, "_LONG", 1)
    for name, value in {"_BLOCKS": 2, "_CANDIDATES": 2, "_CHUNK": 4}.items():
        monkeypatch.setattr(_greedy_rounds, name, value)


pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory", "small_rounds"),
    # NumPy warns when the interpreter multiplies rows that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]


class Noted:
    """The kernel of the last launch, which notes how many picks the rounds before it made."""

    def __init__(self, kernel):
        self.kernel, self.made = kernel, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.made.append(arguments[6][:, 0].tolist())
            return self.kernel[grid](*arguments, **options)

        return launch


@pytest.fixture
def rounds(monkeypatch):
    """Set how many rounds are launched; returns the picks they make of each segment, by calls."""
    noted = Noted(_greedy_rounds._finish_kernel)
    monkeypatch.setattr(_greedy_rounds, "_finish_kernel", noted)

    def use(number):
        monkeypatch.setattr(_greedy_rounds, "_rounds", lambda k: number)
        return noted.made

    return use


def plain_greedy(distance, k, weights=None):
    """The picks of the plain loop on a matrix, of which it reads the lines of picked rows."""
    weights = torch.ones(len(distance)) if weights is None else weights.cpu()
    others = distance.clone().fill_diagonal_(INF)
    nearest, picks = others.amin(1) * weights, []
    limit = torch.full_like(nearest, INF)
    for _ in range(k):
        pick = int(nearest.argmax())  # the first of equal maxima, as torch documents
        picks.append(pick)
        limit = torch.minimum(limit, distance[pick] * weights)
        limit[picks] = -INF
        nearest = limit
    return picks


def distances_read(features):
    """The matrix of one segment, as the greedy reads it."""
    segments, n = ragged([len(features)], features.device), len(features)
    x, inverse, nearest = _distances.norms(features)
    assert _dot_products.takes_dot_products(x)
    dots, _ = _dot_products.dot_products(x, inverse, nearest, segments.cu_seqlens, 0, [n])
    dots, inverse = dots.view(n, -1)[:, :n].cpu(), inverse.cpu()
    return 1.0 - dots * inverse[:, None] * inverse


@weighted
@examples(40)
@given(
    case=batches(max_length=7),
    data=st.data(),
    dtype=st.sampled_from(KERNEL_DTYPES),
    width=st.sampled_from([4, 8]),  # of 16 bits, 8 columns are multiplied by the library
    number=st.sampled_from([1, 3, 7]),
)
def test_agrees_with_the_plain_greedy(weight, case, data, dtype, width, number):
    lengths, keep = case
    rows = data.draw(st.lists(ROW, min_size=sum(lengths), max_size=sum(lengths)))
    features = torch.zeros(len(rows), width, dtype=dtype)
    features[:, :4] = torch.tensor(rows).view(-1, 4).to(dtype)
    segments, fenced = ragged(lengths, DEVICE), fenced_rows(features, NAN, DEVICE)
    weights = drawn_weights(data, weight, len(features))
    on_device = None if weights is None else fenced_rows(weights, NAN, DEVICE)
    options = {"weights": on_device, "return_order": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_greedy_rounds, "_rounds", lambda k: number)
        index, order = diversity_select(fenced, segments, keep, **options, impl="triton")
    x = features.double().numpy()
    expected = oracles.diversity_select(x, lengths, keep, listed(weights))
    assert order.tolist() == expected
    check_selection(index, lengths, keep)
    assert sorted(expected) == index.tolist()
    plain = reference.diversity_select(features.to(DEVICE), segments, keep, weights=on_device)
    assert torch.equal(index, plain)


@pytest.mark.parametrize(
    ("n", "k", "blocks", "candidates"),
    [
        pytest.param(63, 63, 2, 2, id="all rows"),
        pytest.param(130, 40, 4, 8, id="more candidates"),
        pytest.param(130, 40, 1, 16, id="one program"),
        pytest.param(97, 60, 8, 1, id="one candidate each"),
        pytest.param(20, 20, 8, 8, id="more candidates than rows"),
    ],
)
@pytest.mark.parametrize("number", [3, 41])
def test_rounds_are_the_plain_greedy_on_the_same_matrix(
    device, monkeypatch, rounds, n, k, blocks, candidates, number
):
    """Bit for bit, in pick order, whatever part of it the rounds do."""
    monkeypatch.setattr(_greedy_rounds, "_BLOCKS", blocks)
    monkeypatch.setattr(_greedy_rounds, "_CANDIDATES", candidates)
    features = clusters(n, 64, dtype=torch.bfloat16)
    features[n // 2 : n // 2 + 5] = features[:5]
    features[n // 3] = 0
    features = fenced_rows(features, NAN, device)
    made = rounds(number)
    assert order_of(features, k, "triton") == plain_greedy(distances_read(features), k)
    assert number <= made[0][0] <= k or made == [[k]]


@pytest.mark.parametrize("number", [3, 41])
def test_rounds_are_the_plain_greedy_with_weights(device, rounds, number):
    """Dot products are weighted where a line is read: by rounds, and by what comes after them."""
    features, weights = clusters(130, 64, dtype=torch.bfloat16), weights_of(130)
    features[60:65] = features[:5]
    features, weights = (fenced_rows(x, NAN, device) for x in (features, weights))
    rounds(number)
    expected = plain_greedy(distances_read(features), 125, weights)
    assert order_of(features, 125, "triton", weights) == expected


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_every_pick_is_the_farthest_given_the_picks_before_it(device, dtype):
    features = clusters(150, 40, dtype=dtype).to(device)
    check_greedy(features, order_of(features, 60, "triton"), 60)
    weights = weights_of(150).to(device)
    check_greedy(features, order_of(features, 60, "triton", weights), 60, weights)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_weights_of_one_change_no_pick(device, dtype):
    """In fp32 the matrices hold distances, in 16 bits dot products."""
    features = clusters(150, 40, dtype=dtype).to(device)
    weights = torch.ones(150, device=device)
    assert order_of(features, 90, "triton", weights) == order_of(features, 90, "triton")


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_rows_of_weight_0_are_picked_by_position(device, dtype):
    """Rounding makes distances of copies negative, and -0.0 comes before 0.0 in integers."""
    features = clusters(60, 64, dtype=dtype).repeat(2, 1).to(device)
    weights = torch.zeros(120, device=device)
    assert order_of(features, 120, "triton", weights) == list(range(120))


def test_a_round_picks_many_rows(device, rounds, monkeypatch):
    """Or nothing would be gained."""
    monkeypatch.setattr(_greedy_rounds, "_CANDIDATES", 16)
    made = rounds(13)
    order_of(clusters(200, 64, dtype=torch.bfloat16).to(device), 100, "triton")
    assert made == [[100]]


def test_what_the_rounds_leave_is_picked_after_them(device, rounds, monkeypatch):
    """With one candidate a program, none but the first is surely ahead of all other rows."""
    monkeypatch.setattr(_greedy_rounds, "_CANDIDATES", 1)
    features = clusters(50, 64, dtype=torch.bfloat16).to(device)
    expected = plain_greedy(distances_read(features), 30)
    made = rounds(7)
    assert order_of(features, 30, "triton") == expected
    assert made == [[7]]


def test_equal_distances_are_picked_by_position(device, rounds):
    made = rounds(5)
    assert order_of(torch.ones(30, 8, dtype=torch.bfloat16, device=device), 30, "triton") == list(
        range(30)
    )
    assert made[0][0] > 5


def test_every_segment_has_its_own_rounds(device, rounds):
    """Segments of very different lengths and counts in one launch, some of them finished early."""
    lengths, keep = [70, 1, 30, 5, 64], [9, 1, 30, 0, 40]
    features = clusters(sum(lengths), 64, dtype=torch.bfloat16).to(device)
    made = rounds(31)
    segments = ragged(lengths, device)
    order = diversity_select(features, segments, keep, return_order=True, impl="triton")[1]
    assert len(made) == 1
    parts = zip(features.split(lengths), order.split(keep), keep, segments.offsets, strict=False)
    for part, picks, k, start in parts:
        expected = plain_greedy(distances_read(part), k)
        assert [pick - start for pick in picks.tolist()] == expected


@pytest.mark.parametrize("weigh", [False, True], ids=["no weights", "weights"])
def test_result_is_independent_of_batch_composition(device, monkeypatch, weigh):
    """Some segments are long, and others are not."""
    monkeypatch.setattr(diversity_module, "_LONG", 30)
    lengths, keep = [30, 70, 9, 64], [11, 32, 4, 20]
    rows = [clusters(n, 80, seed=n, dtype=torch.bfloat16).to(device) for n in lengths]
    weights = [weights_of(n, seed=n).to(device) if weigh else None for n in lengths]
    alone = [order_of(x, k, "triton", w) for x, k, w in zip(rows, keep, weights, strict=True)]
    for batch in ([0, 1, 2, 3], [3, 1], [2, 1, 3], [1, 2, 1, 0]):
        segments = ragged([lengths[b] for b in batch], device)
        counts, features = [keep[b] for b in batch], torch.cat([rows[b] for b in batch])
        options = {"weights": torch.cat([weights[b] for b in batch]) if weigh else None}
        options |= {"return_order": True, "impl": "triton"}
        order = diversity_select(features, segments, counts, **options)[1]
        parts = zip(order.split(counts), segments.offsets, strict=False)
        assert [(picks - start).tolist() for picks, start in parts] == [alone[b] for b in batch]


def test_long_segments_share_no_group_with_others(monkeypatch):
    monkeypatch.setattr(diversity_module, "_LONG", 2048)
    lengths = [2047, 2048, 16384, 0, 5, 4096]
    groups = [lengths[group] for group in diversity_module._groups(lengths)]
    assert groups == [[2047], [2048], [16384], [0, 5], [4096]]


def test_dot_products_are_exact_sums_under_autocast(device):
    """Whole numbers that neither fp16 nor bf16 can hold."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-9, 10, (40, 64), generator=generator).to(device, torch.bfloat16)
    x, inverse, nearest = _distances.norms(features)
    cu_seqlens = ragged([40], device).cu_seqlens
    with torch.autocast(torch.device(device).type, dtype=torch.float16):
        dots, _ = _dot_products.dot_products(x, inverse, nearest, cu_seqlens, 0, [40])
    expected = features.double() @ features.double().T
    assert expected.abs().max() > 2048
    assert torch.equal(dots.view(40, 48)[:, :40].double(), expected)


def test_features_in_training_are_accepted(device):
    features = clusters(20, dtype=torch.bfloat16).to(device).requires_grad_()
    options = {"return_order": True, "impl": "triton"}
    assert not diversity_select(features, ragged([20], device), [5], **options)[0].requires_grad


def test_only_aligned_rows_of_16_bits_are_multiplied_by_the_library(device, monkeypatch):
    """Others may be summed in an order that depends on where they start, and so on the batch."""

    def takes(x):
        return _dot_products.takes_dot_products(x)

    wide = torch.zeros(9, 24, dtype=torch.bfloat16, device=device)
    assert takes(wide)
    assert takes(wide[:, 8:])
    assert takes(wide.half())
    assert not takes(wide.float())
    assert not takes(wide[:, 1:])
    assert not takes(wide[:, :20].contiguous())
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not takes(wide)
