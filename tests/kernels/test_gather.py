"""`gather_rows`: chosen rows of several tensors, bit for bit."""

import re

import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import KERNEL, refusal
from row_views import DTYPES, VIEWS, bits, rows

from vtfast.kernels import reference
from vtfast.kernels._checks import INDEX_DTYPES
from vtfast.kernels.gather import gather_rows

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")

INDICES = [
    pytest.param([2, 0, 5], id="any order"),
    pytest.param([1, 1, 1], id="repeats"),
    pytest.param([], id="none"),
    pytest.param([0, 1, 2, 3, 4, 5], id="all"),
]


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", INDICES)
def test_copies_the_chosen_rows_of_every_tensor(impl, index, index_dtype):
    tensors = rows(6, 5), rows(6), rows(6, 2, 3)
    out = gather_rows(torch.tensor(index, dtype=index_dtype), *tensors, impl=impl)
    assert len(out) == len(tensors)
    for copied, x in zip(out, tensors, strict=True):
        assert copied.shape == (len(index), *x.shape[1:])
        assert [row.tolist() for row in copied] == [x[i].tolist() for i in index]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu])
def test_copies_dtypes_that_triton_or_a_gpu_does_not_know(impl, dtype):
    x = torch.arange(28, dtype=torch.uint8).view(4, 7)
    (out,) = gather_rows(torch.tensor([3, 1]), x.view(dtype), impl=impl)
    assert out.dtype == dtype
    assert torch.equal(out.view(torch.uint8), x[[3, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_dtype(impl, dtype):
    (out,) = gather_rows(torch.tensor([3, 1]), rows(4, 7, dtype=dtype), impl=impl)
    assert out.dtype == dtype
    assert torch.equal(out, torch.stack([rows(4, 7, dtype=dtype)[i] for i in (3, 1)]))


def test_keeps_nan_bits(impl):
    x = torch.tensor([[0x7FC12345], [-0x00200000 + 1]], dtype=torch.int32)
    (out,) = gather_rows(torch.tensor([1, 0]), x.view(torch.float32), impl=impl)
    assert out.view(torch.int32).tolist() == x.flip(0).tolist()


def test_one_tensor_also_comes_back_in_a_tuple():
    assert isinstance(gather_rows(torch.tensor([0]), rows(2, 2)), tuple)


@pytest.mark.parametrize("view", VIEWS)
def test_reads_any_strides_and_writes_contiguously(impl, view):
    view = view()
    (out,) = gather_rows(torch.tensor([4, 0, 2]), view, impl=impl)
    assert out.is_contiguous()
    assert torch.equal(out, torch.stack([view[i] for i in (4, 0, 2)]))


@pytest.mark.parametrize(
    ("count", "width"),
    [(1, 1025), (3, 63), (4, 1), (4, 1024), (5, 1023), (5, 2051), (63, 1), (63, 1025)],
)
def test_copies_blocks_and_what_is_left_of_them(impl, count, width):
    """Sizes around the kernel's tile of 4 rows and 1024 words."""
    x, index = rows(9, width), torch.arange(count) * 5 % 9
    (out,) = gather_rows(index, x, impl=impl)
    assert torch.equal(out, x[index])


def test_moves_keys_and_values_of_all_layers_at_once(impl):
    layers = [rows(7, 2, 8, dtype=torch.bfloat16) + i for i in range(56)]
    index = torch.tensor([6, 0, 3])
    out = gather_rows(index, *layers, impl=impl)
    assert all(torch.equal(o, x[index]) for o, x in zip(out, layers, strict=True))


def test_reads_no_row_that_was_not_chosen(device):
    """Guard rows on both sides of the tensor, in the same memory, would show in the result."""
    inside = rows(11, 20)[3:8]
    inside[:] = torch.arange(100.0).view(5, 20)
    (out,) = gather_rows(torch.tensor([4, 0], device=device), inside.to(device), impl="triton")
    assert out.tolist() == [list(range(80, 100)), list(range(20))]


@KERNEL
@given(st.data())
def test_the_kernel_copies_what_the_reference_copies(data):
    number = data.draw(st.integers(1, 9))
    index = data.draw(st.lists(st.integers(0, number - 1), max_size=9))
    widths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    tensors = []
    for width in widths:
        x = rows(number, width + 3, dtype=data.draw(st.sampled_from(DTYPES))).to(DEVICE)
        first = data.draw(st.integers(0, 3))
        tensors.append(x[:, first : first + width])
    index = torch.tensor(index, dtype=data.draw(st.sampled_from(INDEX_DTYPES)), device=DEVICE)
    out = gather_rows(index, *tensors, impl="triton")
    expected = reference.gather_rows(index, *tensors)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(out, expected, strict=True))


def test_the_kernel_refuses_tensors_that_need_gradients(device):
    x = rows(4, 2).to(device).requires_grad_()
    index = torch.tensor([0], device=device)
    with pytest.raises(ValueError, match="no backward and a tensor needs a gradient; pass impl="):
        gather_rows(index, x, impl="triton")
    with torch.no_grad():
        assert torch.equal(gather_rows(index, x, impl="triton")[0], x[:1])


def test_lets_gradients_through():
    x = rows(4, 2).requires_grad_()
    gather_rows(torch.tensor([1, 1, 3]), x)[0].sum().backward()
    assert x.grad.tolist() == [[0, 0], [2, 2], [0, 0], [1, 1]]


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    index = torch.empty(3, dtype=torch.int32, device="meta")
    assert gather_rows(index, torch.empty(9, 2, device="meta"))[0].shape == (3, 2)


def gather(*tensors, index=None, **options):
    index = torch.tensor([0, 1]) if index is None else index
    return gather_rows(index, *tensors, **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: gather(rows(2), impl="cuda")),
        refusal("nothing", ValueError, "no tensor to gather from", gather),
        refusal("no tensor", TypeError, "tensor 0 must be a tensor, got list", lambda: gather([1])),
        refusal(
            "scalar",
            ValueError,
            "tensor 0 must have at least 1 dimension",
            lambda: gather(torch.tensor(1)),
        ),
        refusal(
            "rows",
            ValueError,
            "tensor 1 has shape (3, 2) but tensor 0 has (2,)",
            lambda: gather(rows(2), rows(3, 2)),
        ),
        refusal(
            "index dtype",
            TypeError,
            "index must be int32 or int64, got torch.bool",
            lambda: gather(rows(2), index=torch.tensor([True, False])),
        ),
        refusal(
            "index rank",
            ValueError,
            "index must have 1 dimensions, got shape (1, 1)",
            lambda: gather(rows(2), index=torch.tensor([[0]])),
        ),
        refusal(
            "device",
            ValueError,
            "tensor 0 is on meta but the other arguments are on cpu",
            lambda: gather(rows(2).to("meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
