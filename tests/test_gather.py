"""`gather_rows`: chosen rows of several tensors, bit for bit."""

import re

import pytest
import torch
from ragged_cases import refusal

from vtfast.kernels.gather import gather_rows

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
INDICES = [
    pytest.param([2, 0, 5], id="any order"),
    pytest.param([1, 1, 1], id="repeats"),
    pytest.param([], id="none"),
    pytest.param([0, 1, 2, 3, 4, 5], id="all"),
]


def rows(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("index", INDICES)
def test_copies_the_chosen_rows_of_every_tensor(index, index_dtype):
    tensors = rows(6, 5), rows(6), rows(6, 2, 3)
    out = gather_rows(torch.tensor(index, dtype=index_dtype), *tensors)
    assert len(out) == len(tensors)
    for copied, x in zip(out, tensors, strict=True):
        assert copied.shape == (len(index), *x.shape[1:])
        assert [row.tolist() for row in copied] == [x[i].tolist() for i in index]


@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_dtype(dtype):
    (out,) = gather_rows(torch.tensor([3, 1]), rows(4, 7, dtype=dtype))
    assert out.dtype == dtype
    assert torch.equal(out, torch.stack([rows(4, 7, dtype=dtype)[i] for i in (3, 1)]))


def test_keeps_nan_bits():
    x = torch.tensor([[0x7FC12345], [-0x00200000 + 1]], dtype=torch.int32)
    (out,) = gather_rows(torch.tensor([1, 0]), x.view(torch.float32))
    assert out.view(torch.int32).tolist() == x.flip(0).tolist()


def test_one_tensor_also_comes_back_in_a_tuple():
    assert isinstance(gather_rows(torch.tensor([0]), rows(2, 2)), tuple)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(rows(5, 8)[:, 2:7], id="columns of a wider tensor"),
        pytest.param(rows(3, 5, 4).transpose(0, 1), id="head-major"),
        pytest.param(rows(4).expand(5, 4), id="one row repeated"),
    ],
)
def test_reads_any_strides_and_writes_contiguously(view):
    (out,) = gather_rows(torch.tensor([4, 0, 2]), view)
    assert out.is_contiguous()
    assert torch.equal(out, torch.stack([view[i] for i in (4, 0, 2)]))


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
        refusal(
            "no kernel", RuntimeError, "no Triton kernel", lambda: gather(rows(2), impl="triton")
        ),
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
