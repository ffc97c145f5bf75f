"""Every op gives the same bits whatever dtype or device PyTorch makes tensors in by default.

Loaders leave such defaults behind. The diversity once failed under any but float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import op_calls
import pytest
import torch
from devices import DEVICE

from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_decode import ragged_decode

DTYPES = [torch.bfloat16, torch.float16, torch.float64]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def unusual_defaults() -> Iterator[tuple[str, object]]:
    for dtype in DTYPES:
        yield str(dtype), default_dtype(dtype)
    yield "a default device", torch.device("meta")
    yield "inference mode", torch.inference_mode()
    yield "autocast", torch.autocast(DEVICE, torch.bfloat16)


def check_same_bits(call: Callable[[], object]) -> None:
    expected = call()
    for name, default in unusual_defaults():
        with default:
            got = call()
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=name)


def fresh(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", op_calls.op_calls(DEVICE))
@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_an_op_gives_the_same_bits_under_other_defaults(monkeypatch, name, impl):
    if impl == "triton":  # interpreted, a picture of 577 tokens takes minutes
        monkeypatch.setattr(op_calls, "LENGTHS", (3, 0, 21, 1))
        monkeypatch.setattr(op_calls, "KEEP", (2, 0, 9, 1))
    call, tensors = op_calls.op_calls(DEVICE, impl)[name]
    check_same_bits(lambda: call(*tensors))


@pytest.mark.parametrize("lengths", [[5, 9], [7, 7]], ids=["unequal", "equal"])
def test_decoding_with_host_lengths_gives_the_same_bits_under_other_defaults(impl, lengths):
    q, cache = fresh(2, 4, 16).to(DEVICE), fresh(14, 2, 16, seed=1).to(DEVICE)
    starts = [0, 14 - lengths[1]]
    check_same_bits(lambda: ragged_decode(q, cache, cache, lengths, starts=starts, impl=impl))


def test_lengths_first_seen_under_another_default_device_are_on_their_own():
    with torch.device("meta"):
        assert Ragged.from_lengths([5, 90_001], "cpu").cu_seqlens.tolist() == [0, 5, 90_006]
        q, cache = torch.ones(2, 4, 16, device="cpu"), torch.ones(90_006, 2, 16, device="cpu")
        out = ragged_decode(q, cache, cache, [5, 90_001], impl="eager")
    assert torch.equal(out, q)
