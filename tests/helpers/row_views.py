"""Tensors to gather rows from, shared by the tests of the ops that gather."""

import pytest
import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(dtype)
    return x.to(torch.get_default_device())


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8) if x.numel() else x


# Five rows each, in every layout there is.
VIEWS = [
    pytest.param(lambda: rows(5, 8)[:, 2:7], id="columns of a wider tensor"),
    pytest.param(lambda: rows(5, 16)[:, 4:12], id="rows 16 bytes apart"),
    pytest.param(lambda: rows(5, 9, dtype=torch.bfloat16)[:, 1:], id="2-byte steps"),
    pytest.param(lambda: rows(5, 9).view(torch.int8)[:, 1:4], id="1-byte steps"),
    pytest.param(lambda: rows(5, 8)[:, ::2], id="every other column"),
    pytest.param(lambda: rows(3, 5, 4).transpose(0, 1), id="head-major"),
    pytest.param(lambda: rows(5, 3)[:, 1], id="one column"),
    pytest.param(lambda: rows(9, 4)[::2], id="every other row"),
    pytest.param(lambda: rows(4).expand(5, 4), id="one row repeated"),
    pytest.param(lambda: rows(5, 0), id="rows of nothing"),
]
