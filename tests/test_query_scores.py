"""`last_query_scores`: one row of the attention matrix, averaged over heads, in fp32."""

import re

import numpy as np
import oracles
import pytest
import torch
from ragged_cases import cut, refusal

from vtfast.kernels.query_scores import last_query_scores

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [
    pytest.param([], id="no sequences"),
    pytest.param([1], id="one key"),
    pytest.param([6, 6, 6], id="equal lengths"),
    pytest.param([13, 0, 1, 63], id="odd lengths, an empty sequence"),
]


def heads(rows, number, dtype=torch.float32, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, number, dim, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_agrees_with_the_plain_softmax(lengths, num_heads, num_kv_heads, dtype):
    """Inputs are read in fp32, so low-precision ones are held to fp32 rounding too."""
    q, k = heads(len(lengths), num_heads, dtype), heads(sum(lengths), num_kv_heads, dtype, seed=1)
    scores = last_query_scores(q, k, cut(lengths), scale=0.7)
    expected = oracles.last_query_scores(q.double().numpy(), k.double().numpy(), lengths, 0.7)
    assert (scores.dtype, scores.shape) == (torch.float32, (sum(lengths),))
    assert np.abs(scores.double().numpy() - expected).max(initial=0.0) < 1e-6


def test_scores_of_a_sequence_sum_to_one():
    scores = last_query_scores(heads(2, 4), heads(30, 2), cut([12, 18]), scale=0.25)
    torch.testing.assert_close(scores[:12].sum(), torch.tensor(1.0))
    torch.testing.assert_close(scores[12:].sum(), torch.tensor(1.0))


def test_large_logits_do_not_overflow():
    scores = last_query_scores(heads(1, 2) * 100, heads(9, 2) * 100, cut([9]), scale=1.0)
    assert scores.isfinite().all()


@pytest.mark.parametrize("lengths", [[16, 16, 16], [30, 7, 11]])
def test_a_sequence_scores_the_same_alone_and_in_a_batch(lengths):
    q, k, segments = heads(3, 4), heads(48, 2), cut(lengths)
    together = last_query_scores(q, k, segments, scale=0.25)
    for s, (a, b) in enumerate(zip(segments.offsets, segments.offsets[1:], strict=False)):
        alone = last_query_scores(q[s : s + 1], k[a:b], cut([b - a]), scale=0.25)
        assert torch.equal(alone, together[a:b])


def test_reads_head_major_keys():
    k = heads(2, 9).transpose(0, 1)
    q = heads(1, 4)
    scores = last_query_scores(q, k, cut([9]), scale=0.25)
    torch.testing.assert_close(
        scores, last_query_scores(q, k.contiguous(), cut([9]), scale=0.25), rtol=0, atol=1e-6
    )


def test_autocast_does_not_lower_the_precision():
    q, k = heads(1, 4), heads(9, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = last_query_scores(q, k, cut([9]), scale=0.25)
    assert torch.equal(lowered, last_query_scores(q, k, cut([9]), scale=0.25))


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    q, k = heads(2, 4).to("meta"), heads(9, 2).to("meta")
    assert last_query_scores(q, k, cut([4, 5], "meta"), scale=1.0).shape == (9,)


def score(q=None, k=None, lengths=(4, 5), **options):
    q = heads(2, 4) if q is None else q
    k = heads(9, 2) if k is None else k
    return last_query_scores(q, k, cut(lengths), **{"scale": 1.0, **options})


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: score(impl="cuda")),
        refusal("no kernel", RuntimeError, "no Triton kernel", lambda: score(impl="triton")),
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
        refusal("dtype", TypeError, "q must be float32", lambda: score(heads(2, 4).double())),
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
            "rows", ValueError, "segments cuts 8 rows but k has 9", lambda: score(lengths=[4, 4])
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
