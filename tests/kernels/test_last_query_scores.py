"""`last_query_scores`: one row of the attention matrix, averaged over heads, in fp32."""

import re

import numpy as np
import oracles
import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import KERNEL, fenced_rows, ragged, refusal

from vtfast.kernels import reference
from vtfast.kernels.last_query_scores import last_query_scores

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies keys that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")
LENGTHS = [
    pytest.param([], id="no sequences"),
    pytest.param([1], id="one key"),
    pytest.param([6, 6, 6], id="equal lengths"),
    pytest.param([13, 0, 1, 63], id="odd lengths, an empty sequence"),
    pytest.param([64, 65, 129], id="around a block of keys"),
    pytest.param([1025, 40], id="more than one block in a split"),
]


def heads(rows, number, dtype=torch.float32, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, number, dim, generator=generator, device="cpu").to(dtype)
    return x.to(torch.get_default_device())


def fp64(x):
    return x.double().cpu().numpy()


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dtype"),
    [(4, 4, torch.float32), (6, 2, torch.bfloat16), (3, 1, torch.float16)],
)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_agrees_with_the_plain_softmax(impl, lengths, num_heads, num_kv_heads, dtype):
    """Inputs are read in fp32, so low-precision ones too may err by fp32 rounding only."""
    q, k = heads(len(lengths), num_heads, dtype), heads(sum(lengths), num_kv_heads, dtype, seed=1)
    scores = last_query_scores(q, k, ragged(lengths), scale=0.7, impl=impl)
    expected = oracles.last_query_scores(fp64(q), fp64(k), lengths, 0.7)
    assert (scores.dtype, scores.shape) == (torch.float32, (sum(lengths),))
    assert np.abs(fp64(scores) - expected).max(initial=0.0) < 1e-6


@KERNEL
@given(
    st.lists(st.integers(0, 70), max_size=3),
    st.sampled_from([(1, 1), (2, 2), (3, 1), (14, 2), (17, 1), (66, 2)]),
    st.sampled_from([1, 8, 40, 200]),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_the_kernel_errs_at_most_twice_as_much_as_the_reference(lengths, number, dim, dtype, seed):
    """Between fences of NaN queries and keys."""
    q = fenced_rows(heads(len(lengths), number[0], dtype, dim, seed), device=DEVICE)
    k = fenced_rows(heads(sum(lengths), number[1], dtype, dim, seed + 1), device=DEVICE)
    segments = ragged(lengths, DEVICE)
    scores = last_query_scores(q, k, segments, scale=0.4, impl="triton")
    expected = oracles.last_query_scores(fp64(q), fp64(k), lengths, 0.4)
    error = np.abs(fp64(scores) - expected).max(initial=0.0)
    plain = reference.last_query_scores(q, k, segments, scale=0.4)
    assert error <= 2 * np.abs(fp64(plain) - expected).max(initial=0.0) + 3e-7


def test_a_key_of_minus_infinity_gets_nothing(impl):
    """Also where all keys of a split are minus infinity."""
    k = torch.ones(200, 1, 4)
    k[:128] = -INF
    scores = last_query_scores(torch.ones(1, 2, 4), k, ragged([200]), scale=1.0, impl=impl)
    assert scores[:128].eq(0).all()
    torch.testing.assert_close(scores[128:], torch.full((72,), 1 / 72))


def test_nan_stays_in_its_sequence(impl):
    k = heads(30, 2)
    k[3] = NAN
    scores = last_query_scores(heads(2, 4), k, ragged([12, 18]), scale=0.25, impl=impl)
    assert scores[:12].isnan().all()
    assert scores[12:].isfinite().all()


def test_scores_in_training_are_constants(impl):
    q, k = heads(1, 4).requires_grad_(), heads(9, 2).requires_grad_()
    assert not last_query_scores(q, k, ragged([9]), scale=0.25, impl=impl).requires_grad


def test_scores_of_a_sequence_sum_to_one(impl):
    scores = last_query_scores(heads(2, 4), heads(30, 2), ragged([12, 18]), scale=0.25, impl=impl)
    torch.testing.assert_close(scores[:12].sum(), torch.tensor(1.0))
    torch.testing.assert_close(scores[12:].sum(), torch.tensor(1.0))


def test_large_logits_do_not_overflow(impl):
    q, k = heads(1, 2) * 100, heads(9, 2) * 100
    scores = last_query_scores(q, k, ragged([9]), scale=1.0, impl=impl)
    assert scores.isfinite().all()


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_reads_keys_of_any_strides(impl, axes):
    sizes = [9, 2, 16]
    sizes[axes[0]], sizes[axes[1]] = sizes[axes[1]], sizes[axes[0]]
    k = heads(*sizes[:2], dim=sizes[2]).transpose(*axes)
    q = heads(4, 1).transpose(0, 1)
    scores = last_query_scores(q, k, ragged([9]), scale=0.25, impl=impl)
    torch.testing.assert_close(
        scores, last_query_scores(q, k.contiguous(), ragged([9]), scale=0.25), rtol=0, atol=1e-6
    )


def test_autocast_does_not_lower_the_precision():
    q, k = heads(1, 4), heads(9, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = last_query_scores(q, k, ragged([9]), scale=0.25)
    assert torch.equal(lowered, last_query_scores(q, k, ragged([9]), scale=0.25))


def test_fp64_is_read_in_fp32():
    q, k = heads(2, 4), heads(9, 2)
    scores = last_query_scores(q.double(), k.double(), ragged([4, 5]), scale=0.25)
    assert torch.equal(scores, last_query_scores(q, k, ragged([4, 5]), scale=0.25))


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    q, k = heads(2, 4).to("meta"), heads(9, 2).to("meta")
    assert last_query_scores(q, k, ragged([4, 5], "meta"), scale=1.0).shape == (9,)


def score(q=None, k=None, lengths=(4, 5), **options):
    q = heads(2, 4) if q is None else q
    k = heads(9, 2) if k is None else k
    return last_query_scores(q, k, ragged(lengths), **{"scale": 1.0, **options})


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: score(impl="cuda")),
        refusal(
            "too wide",
            ValueError,
            "the kernel takes head sizes 1 to 256, got 257; pass impl=",
            lambda: last_query_scores(
                heads(2, 4, dim=257).to(DEVICE),
                heads(9, 2, dim=257).to(DEVICE),
                ragged([4, 5], DEVICE),
                scale=1.0,
                impl="triton",
            ),
        ),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: last_query_scores(heads(2, 4), heads(9, 2), [4, 5], scale=1.0),
        ),
        refusal(
            "rank",
            ValueError,
            "q must have 3 dimensions, got shape (4, 16)",
            lambda: score(heads(2, 4)[0]),
        ),
        refusal("dtype", TypeError, "q must be float32", lambda: score(heads(2, 4).int())),
        refusal(
            "fp64",
            ValueError,
            "the kernel does not take torch.float64; pass impl=",
            lambda: last_query_scores(
                heads(2, 4).to(DEVICE, torch.float64),
                heads(9, 2).to(DEVICE, torch.float64),
                ragged([4, 5], DEVICE),
                scale=1.0,
                impl="triton",
            ),
        ),
        refusal(
            "mixed",
            TypeError,
            "k must be float32, got torch.float16",
            lambda: score(k=heads(9, 2).half()),
        ),
        refusal(
            "group",
            ValueError,
            "4 query heads cannot share 3 key heads",
            lambda: score(k=heads(9, 3)),
        ),
        refusal(
            "head size",
            ValueError,
            "q has head size 16 but the keys have 8",
            lambda: score(k=heads(9, 2, dim=8)),
        ),
        refusal(
            "rows",
            ValueError,
            "the lengths of segments sum to 8 but k has 9 rows",
            lambda: score(lengths=[4, 4]),
        ),
        refusal(
            "queries", ValueError, "q has 3 entries for 2 segments", lambda: score(heads(3, 4))
        ),
        refusal("device", ValueError, "k is on meta", lambda: score(k=heads(9, 2).to("meta"))),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
