"""`ragged_decode`: one query per sequence over its own rows of a cache."""

import re

import numpy as np
import oracles
import pytest
import torch
from devices import DEVICE
from ragged_cases import ragged, refusal

from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ROWS = 24
RANGES = [
    pytest.param([], [], id="no sequences"),
    pytest.param([9], [3], id="one sequence"),
    pytest.param([5, 5, 5], [0, 5, 10], id="equal lengths, back to back"),
    pytest.param([5, 5, 5], [2, 9, 16], id="equal lengths, room between them"),
    pytest.param([5, 5, 5], [0, 5, 19], id="equal lengths, uneven room"),
    pytest.param([5, 5], [12, 3], id="equal lengths, backwards"),
    pytest.param([6, 6], [4, 4], id="equal lengths, the same rows"),
    pytest.param([1, 13, 4], [0, 1, 20], id="ragged"),
    pytest.param([4, 0, 7, 0], [0, 4, 4, 24], id="empty sequences, one past the end"),
    pytest.param([0, 0], [0, 0], id="only empty sequences"),
]


def heads(rows, number, dtype=torch.float32, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, number, dim, generator=generator).to(dtype)


def cache(num_kv_heads=2, dtype=torch.float32, rows=ROWS):
    return heads(rows, num_kv_heads, dtype, seed=1), heads(rows, num_kv_heads, dtype, seed=2)


def on_device(values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("form", [list, on_device])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dtype"),
    [
        (4, 4, torch.float32),
        (6, 2, torch.float16),
        (3, 1, torch.bfloat16),
        (6, 2, torch.float64),
    ],
)
@pytest.mark.parametrize(("lengths", "starts"), RANGES)
def test_agrees_with_plain_attention(lengths, starts, num_heads, num_kv_heads, dtype, form):
    q, (k, v) = heads(len(lengths), num_heads, dtype), cache(num_kv_heads, dtype)
    got = ragged_decode(q, k, v, form(lengths), starts=form(starts), scale=0.3)
    exact = oracles.decode(*(x.double().numpy() for x in (q, k, v)), starts, lengths, 0.3)
    assert (got.shape, got.dtype) == (q.shape, dtype)
    assert np.abs(got.double().numpy() - exact).max(initial=0.0) <= TOLERANCE[dtype]


@pytest.mark.parametrize("lengths", [[5, 5, 5], [9, 2, 7]])
@pytest.mark.parametrize("form", [list, on_device])
def test_starts_default_to_back_to_back(lengths, form):
    q, (k, v) = heads(3, 4), cache()
    starts = ragged(lengths).offsets[:-1]
    defaulted = ragged_decode(q, k, v, form(lengths))
    assert torch.equal(defaulted, ragged_decode(q, k, v, form(lengths), starts=form(starts)))


@pytest.mark.parametrize("lengths", [[5, 5], [8, 3]])
def test_is_attention_with_one_query_per_sequence(lengths):
    q, (k, v) = heads(2, 4), cache(rows=sum(lengths))
    torch.testing.assert_close(
        ragged_decode(q, k, v, lengths),
        ragged_attention(q, k, v, ragged([1, 1]), ragged(lengths)),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("form", [list, on_device])
@pytest.mark.parametrize(
    ("lengths", "starts"), [([5, 5], [0, 12]), ([3, 9], [1, 10]), ([5, 0], [0, 12])]
)
def test_rows_outside_every_sequence_may_hold_anything(lengths, starts, form):
    """A cache has rows that are not written yet."""
    q, (k, v) = heads(2, 4), cache()
    clean = ragged_decode(q, k, v, form(lengths), starts=form(starts))
    used = torch.zeros(ROWS, dtype=torch.bool)
    for start, length in zip(starts, lengths, strict=True):
        used[start : start + length] = True
    k[~used], v[~used] = float("nan"), float("nan")
    assert torch.equal(ragged_decode(q, k, v, form(lengths), starts=form(starts)), clean)


@pytest.mark.parametrize("form", [list, on_device])
@pytest.mark.parametrize("lengths", [[4, 4], [3, 5]])
def test_reads_the_cache_through_an_index(lengths, form):
    q, (k, v) = heads(2, 4), cache()
    index = torch.tensor([0, 3, 7, 20, 0, 3, 23, 1], dtype=torch.int32)
    direct = ragged_decode(q, k[index], v[index], form(lengths))
    assert torch.equal(ragged_decode(q, k, v, form(lengths), k_index=index), direct)


@pytest.mark.parametrize(("lengths", "starts"), [([5, 5], [1, 13]), ([3, 6], [0, 9])])
def test_reads_a_view_of_a_larger_cache(lengths, starts):
    """Head-major memory, some layers and rows before it: strides and storage offset count."""
    whole = torch.randn(3, 2, ROWS + 4, 16, generator=torch.Generator().manual_seed(5))
    k, v = (whole[layer, :, 4:].transpose(0, 1) for layer in (1, 2))
    q = heads(2, 4)
    torch.testing.assert_close(
        ragged_decode(q, k, v, lengths, starts=starts),
        ragged_decode(q, k.contiguous(), v.contiguous(), lengths, starts=starts),
        rtol=0,
        atol=1e-6,
    )


def test_an_empty_cache_gives_zeros():
    q, (k, v) = heads(2, 4), cache(rows=0)
    for lengths in ([0, 0], on_device([0, 0])):
        assert torch.equal(ragged_decode(q, k, v, lengths), torch.zeros_like(q))


@pytest.mark.parametrize("lengths", [[5, 5], [3, 9]])
def test_needs_no_value_from_the_device(lengths):
    """Meta tensors have no values: whatever would read one back raises."""
    q, k, v = (x.to("meta") for x in (heads(2, 4), *cache()))
    assert ragged_decode(q, k, v, lengths).shape == q.shape
    assert ragged_decode(q, k, v, on_device(lengths).to("meta")).shape == q.shape


def decode(q=None, k=None, v=None, lengths=(3, 4), **options):
    q, k, v = (
        y if x is None else x for x, y in zip((q, k, v), (heads(2, 4), *cache()), strict=True)
    )
    return ragged_decode(q, k, v, lengths, **options)


def on_kernel(q, k, v, **options):
    q, k, v = (x.to(DEVICE) for x in (q, k, v))
    return ragged_decode(q, k, v, [3, 4], impl="triton", **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal(
            "too wide",
            ValueError,
            "the kernel takes head sizes 1 to 128 in torch.float32, got 129; pass impl=",
            lambda: on_kernel(*(heads(n, 2, dim=129) for n in (2, 9, 9))),
        ),
        refusal(
            "scale",
            ValueError,
            "the kernel takes a scale above 0, got 0; pass impl=",
            lambda: on_kernel(heads(2, 4), *cache(), scale=0),
        ),
        refusal(
            "gradient",
            ValueError,
            "the kernel has no backward and a tensor needs a gradient; pass impl=",
            lambda: on_kernel(heads(2, 4).requires_grad_(), *cache()),
        ),
        refusal(
            "negative bound",
            ValueError,
            "max_length=-1; pass an int >= 0, or None",
            lambda: decode(max_length=-1),
        ),
        refusal(
            "bound of a wrong type",
            TypeError,
            "max_length must hold host ints, got True",
            lambda: decode(max_length=True),
        ),
        refusal(
            "too low a bound",
            ValueError,
            "sequence 1 has 4 rows, more than max_length=3; pass a bound that holds, or None",
            lambda: decode(max_length=3),
        ),
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: decode(impl="cuda")),
        refusal("rank", ValueError, "q must have 3 dimensions", lambda: decode(heads(2, 4)[0])),
        refusal("dtype", TypeError, "q must be float32", lambda: decode(heads(2, 4).int())),
        refusal(
            "fp64",
            ValueError,
            "the kernel does not take torch.float64; pass impl=",
            lambda: on_kernel(heads(2, 4).double(), *cache(dtype=torch.float64)),
        ),
        refusal("mixed", TypeError, "k_cache must be float32", lambda: decode(k=cache()[0].half())),
        refusal(
            "group", ValueError, "4 query heads cannot share 3", lambda: decode(k=heads(ROWS, 3))
        ),
        refusal(
            "values",
            ValueError,
            "keys are (24, 2, 16) but values are",
            lambda: decode(v=heads(9, 2)),
        ),
        refusal(
            "count", ValueError, "lengths has 1 entries for 2 segments", lambda: decode(lengths=[3])
        ),
        refusal(
            "starts count",
            ValueError,
            "starts has 1 entries for 2 segments",
            lambda: decode(starts=[3]),
        ),
        refusal(
            "past-the-cache",
            ValueError,
            "sequence 1 starts at row 21 with length 4, outside the 24 rows there are",
            lambda: decode(starts=[0, 21]),
        ),
        refusal(
            "negative",
            ValueError,
            "sequence 0 starts at row 0 with length -1",
            lambda: decode(lengths=[-1, 3]),
        ),
        refusal(
            "before", ValueError, "sequence 0 starts at row -1", lambda: decode(starts=[-1, 3])
        ),
        refusal(
            "past-the-index",
            ValueError,
            "outside the 5 rows there are",
            lambda: decode(k_index=torch.arange(5)),
        ),
        refusal(
            "forms",
            TypeError,
            "starts must be a tensor, got list",
            lambda: decode(lengths=on_device([3, 4]), starts=[0, 3]),
        ),
        refusal(
            "other forms",
            TypeError,
            "starts must be a sequence of host ints, got Tensor",
            lambda: decode(starts=on_device([0, 3])),
        ),
        refusal(
            "tensor dtype",
            TypeError,
            "lengths must be int32, got torch.int64",
            lambda: decode(lengths=torch.tensor([3, 4])),
        ),
        refusal(
            "tensor count",
            ValueError,
            "lengths has 3 entries for 2 segments",
            lambda: decode(lengths=on_device([3, 4, 5])),
        ),
        refusal(
            "device", ValueError, "k_cache is on meta", lambda: decode(k=cache()[0].to("meta"))
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
