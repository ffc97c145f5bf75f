"""`gather=` of the selections: the index and the rows of `gather_rows`, in one launch or two."""

import re

import oracles
import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import BATCHES, KERNEL, batches, fenced_rows, ragged, refusal
from row_views import DTYPES, VIEWS, bits, rows
from torch.utils._python_dispatch import TorchDispatchMode

from vtfast.kernels import random_select as random_module
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")


def random(segments, keep, **options):
    return random_select(segments, keep, seed=4, stream=9, **options)


def topk(segments, keep, **options):
    """Scores with ties, a NaN and an infinity in every segment that is long enough."""
    with torch.device("cpu"):
        scores = torch.randn(segments.total, generator=torch.Generator().manual_seed(5))
        scores = scores.round(decimals=1)
        scores[3::17], scores[5::19] = float("nan"), float("inf")
    scores = fenced_rows(scores, float("inf"), segments.device)
    return topk_select(scores, segments, keep, **options)


SELECT = pytest.mark.parametrize("select", [random, topk])


def check(select, segments, keep, tensors, impl="triton"):
    """Assert that index and rows are those of a selection and a gathering, one after the other."""
    index, gathered = select(segments, keep, gather=tensors, impl=impl)
    alone = select(segments, keep, impl="eager")
    assert index.dtype == torch.int32
    assert torch.equal(index, alone)
    assert isinstance(gathered, tuple)
    for out, expected in zip(gathered, gather_rows(alone, *tensors, impl="eager"), strict=True):
        assert out.is_contiguous()
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        assert torch.equal(bits(out), bits(expected))


@st.composite
def tensors_of(draw, total):
    """One to three tensors of any dtype, columns of wider ones, between fences of rows."""
    tensors = []
    for width in draw(st.lists(st.integers(0, 20), min_size=1, max_size=3)):
        first, dtype = draw(st.integers(0, 3)), draw(st.sampled_from(DTYPES))
        fence = True if dtype == torch.bool else 77
        whole = fenced_rows(rows(total, width + 3, dtype=dtype), fence, DEVICE)
        tensors.append(whole[:, first : first + width])
    return tensors


@KERNEL
@given(batches(max_length=45), st.data())
def test_random_gathers_the_rows_it_draws(case, data):
    lengths, keep = case
    tensors = data.draw(tensors_of(sum(lengths)))
    word = st.integers(-(2**63), 2**63 - 1)
    seed, stream = data.draw(word), data.draw(st.integers(0, 2**31 - 1))
    hashes = data.draw(st.lists(word, min_size=len(lengths), max_size=len(lengths)))
    index, gathered = random_select(
        ragged(lengths, DEVICE),
        keep,
        seed=seed,
        image_hash=torch.tensor(hashes, device=DEVICE).long(),
        stream=stream,
        gather=tensors,
        impl="triton",
    )
    expected = oracles.random_select(lengths, keep, seed, hashes, stream)
    assert index.tolist() == expected
    for out, x in zip(gathered, tensors, strict=True):
        assert torch.equal(bits(out), bits(x[expected]))


@KERNEL
@given(batches(max_length=45), st.data())
def test_topk_gathers_the_rows_it_picks(case, data):
    lengths, keep = case
    total = sum(lengths)
    tensors = data.draw(tensors_of(total))
    score = st.sampled_from([0.0, -0.0, 1.0, -1.0, -1.5, float("nan"), float("inf")])
    values = data.draw(st.lists(score, min_size=total, max_size=total))
    scores = torch.tensor(values, dtype=data.draw(st.sampled_from(DTYPES[:3])))
    fenced = fenced_rows(scores, float("inf"), DEVICE)
    index, gathered = topk_select(
        fenced, ragged(lengths, DEVICE), keep, gather=tensors, impl="triton"
    )
    expected = oracles.topk_select(scores.tolist(), lengths, keep)
    assert index.tolist() == expected
    for out, x in zip(gathered, tensors, strict=True):
        assert torch.equal(bits(out), bits(x[expected]))


@SELECT
@pytest.mark.parametrize(("lengths", "keep"), BATCHES)
def test_agrees_with_two_calls(select, device, lengths, keep):
    x = rows(sum(lengths), 7).to(device)
    check(select, ragged(lengths, device), keep, [x, x[:, 2]])


# Around a program's share: 32 picks, 512 words, lines of 32 rows, tiles of 1024 and 4096 rows.
@SELECT
@pytest.mark.parametrize(
    ("n", "k", "width"),
    [(33, 31, 1), (32, 32, 512), (40, 33, 513), (1024, 65, 127), (1025, 64, 130), (4096, 40, 1100)],
)
def test_copies_blocks_and_what_is_left_of_them(select, device, n, k, width):
    tensors = [rows(n, width).to(device), torch.arange(n, device=device)]
    check(select, ragged([n], device), [k], tensors)


def test_finds_rows_of_full_and_after_empty_lines(device):
    """All of a line, none of several lines, and the very last row."""
    scores = torch.zeros(300)
    scores[[*range(32, 64), 65, 299]] = 1.0
    x = torch.arange(300)
    index, (out,) = topk_select(
        scores.to(device), ragged([300], device), [34], gather=[x.to(device)], impl="triton"
    )
    assert index.tolist() == out.tolist() == [*range(32, 64), 65, 299]


@SELECT
def test_reads_any_strides(select, device):
    check(select, ragged([2, 3], device), [1, 2], [view.values[0]().to(device) for view in VIEWS])


@pytest.mark.parametrize("word_bits", [1, 2])
def test_equal_words_are_ordered_as_in_the_selection_alone(device, word_bits):
    """Real words tie once in billions, so both launches keep a few bits of them only."""
    segments, keep, x = ragged([40, 33], device), [17, 8], rows(73, 5).to(device)
    words = (torch.tensor([3], device=device), None, torch.tensor([1], device=device).int())
    call = (segments.cu_seqlens, *words, keep, 40)
    index, (out,) = random_module._launch_gather(*call, [x], word_bits)
    assert torch.equal(index, random_module._launch(*call, word_bits))
    assert torch.equal(out, x[index])


class Ops(TorchDispatchMode):
    """The names of our ops that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "vtfast":
            self.names.append(func.name().removeprefix("vtfast::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "width", "ran"),
    [
        (4096, 1, ["topk_select_gather"]),
        (4097, 1, ["topk_select", "gather_rows"]),
        (8, 0, ["topk_select", "gather_rows"]),
    ],
)
def test_launches_once_up_to_4096_rows_and_twice_above(device, n, width, ran):
    with Ops() as ops:
        check(topk, ragged([n, 1], device), [2, 1], [rows(n + 1, width).to(device)])
    assert ops.names == ran


@SELECT
def test_without_tensors_the_index_comes_alone(select, impl):
    segments = ragged([5, 4])
    index = select(segments, [2, 3], gather=[], impl=impl)
    assert torch.equal(index, select(segments, [2, 3], impl=impl))


@SELECT
def test_lets_gradients_through(select):
    x = rows(9, 2).requires_grad_()
    index, (out,) = select(ragged([5, 4]), [2, 1], gather=[x])
    out.sum().backward()
    assert x.grad[:, 0].nonzero().flatten().tolist() == index.tolist()


@SELECT
def test_the_kernel_refuses_tensors_that_need_gradients(select, device):
    segments, x = ragged([5, 4], device), rows(9, 2).to(device).requires_grad_()
    with pytest.raises(ValueError, match="no backward and a tensor needs a gradient; pass impl="):
        select(segments, [2, 1], gather=[x], impl="triton")
    with torch.no_grad():
        check(select, segments, [2, 1], [x])


@SELECT
def test_needs_no_value_from_the_device(select):
    """Meta tensors have no values: whatever would read one back raises."""
    x = torch.empty(9, 2, device="meta")
    index, (out,) = select(ragged([5, 4], "meta"), [2, 1], gather=[x])
    assert (index.shape, out.shape) == ((3,), (3, 2))


@SELECT
@pytest.mark.parametrize(
    ("error", "message", "gather"),
    [
        refusal("bare", TypeError, "gather must be a sequence of tensors, got Tensor", rows(9, 2)),
        refusal("none", TypeError, "gather must be a sequence of tensors, got NoneType", None),
        refusal("no tensor", TypeError, "gather[1] must be a tensor, got list", [rows(9), [1]]),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 9 but gather[0] has 8 rows",
            [rows(8, 2)],
        ),
        refusal("scalar", ValueError, "gather[0] must have at least 1", [torch.tensor(1)]),
        refusal("device", ValueError, "gather[0] is on meta but", [torch.ones(9, device="meta")]),
        refusal(
            "complex",
            ValueError,
            'the kernel does not take complex tensors; pass impl="auto"',
            [torch.ones(9, dtype=torch.complex64, device=DEVICE)],
        ),
    ],
)
def test_refuses(select, error, message, gather):
    with pytest.raises(error, match=re.escape(message)):
        select(ragged([5, 4], DEVICE), [2, 1], gather=gather, impl="triton")
