"""`ragged_attention`: every sequence attends to its own keys only, causal bottom-right."""

import re

import numpy as np
import oracles
import pytest
import torch
from attention_cases import LENGTHS, allowed_error, fp64, heads, inputs
from devices import DEVICE
from ragged_cases import ragged, refusal

from vtfast.kernels.ragged_attention import ragged_attention

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dtype"),
    [(4, 4, torch.float32), (6, 2, torch.float16), (3, 1, torch.bfloat16)],
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), LENGTHS)
def test_errs_at_most_twice_as_much_as_sdpa(
    q_lengths, k_lengths, causal, num_heads, num_kv_heads, dtype
):
    q, k, v = inputs(sum(q_lengths), sum(k_lengths), num_heads, num_kv_heads, dtype)
    got = ragged_attention(q, k, v, ragged(q_lengths), ragged(k_lengths), causal=causal, scale=0.3)
    assert (got.shape, got.dtype) == (q.shape, dtype)
    exact = oracles.attention(*fp64(q, k, v), q_lengths, k_lengths, causal, 0.3)
    allowed = allowed_error(exact, q, k, v, q_lengths, k_lengths, causal, 0.3)
    assert np.abs(*fp64(got) - exact).max(initial=0.0) <= allowed


def test_the_default_scale_is_one_over_the_root_of_the_head_size():
    q, k, v = inputs(5, 5)
    got = ragged_attention(q, k, v, ragged([5]), ragged([5]))
    assert torch.equal(got, ragged_attention(q, k, v, ragged([5]), ragged([5]), scale=0.25))


@pytest.mark.parametrize(
    ("q_lengths", "k_lengths"), [([6], [4]), ([6, 2], [4, 2]), ([3, 1], [0, 1])]
)
def test_queries_before_the_first_key_give_exactly_zero(q_lengths, k_lengths):
    q, k, v = inputs(sum(q_lengths), sum(k_lengths))
    out = ragged_attention(q, k, v, ragged(q_lengths), ragged(k_lengths))
    blind = q_lengths[0] - k_lengths[0]
    assert bool((out[:blind] == 0).all())
    assert bool((out[blind:] != 0).any())


@pytest.mark.parametrize("lengths", [[6, 6], [6, 9]])
def test_a_sequence_does_not_read_its_neighbours(lengths):
    """Not even with NaN: 0 times NaN would show."""
    q, k, v = inputs(sum(lengths), sum(lengths))
    clean = ragged_attention(q, k, v, ragged(lengths), ragged(lengths))[:6]
    k[6:], v[6:] = float("nan"), float("nan")
    assert torch.equal(ragged_attention(q, k, v, ragged(lengths), ragged(lengths))[:6], clean)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_reads_keys_through_an_index_with_shared_rows(index_dtype):
    q, k, v = inputs(7, 20)
    rows = [0, 1, 2, 11, 0, 1, 2, 19, 4]
    index = torch.tensor(rows, dtype=index_dtype)
    out = ragged_attention(q, k, v, ragged([3, 4]), ragged([4, 5]), k_index=index)
    exact = oracles.attention(*fp64(q, k, v), [3, 4], [4, 5], True, 0.25, rows)
    assert np.abs(*fp64(out) - exact).max() < 1e-6


@pytest.mark.parametrize("lengths", [[6, 6], [5, 7]])
def test_reads_head_major_and_token_major_memory_alike(lengths):
    token_major = inputs(12, 12)
    head_major = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in token_major]
    segments = ragged(lengths)
    torch.testing.assert_close(
        ragged_attention(*head_major, segments, segments),
        ragged_attention(*token_major, segments, segments),
        rtol=0,
        atol=1e-6,
    )


def test_fp64_is_attended_to_in_fp64():
    q, k, v = inputs(7, 7, dtype=torch.float64)
    out = ragged_attention(q, k, v, ragged([3, 4]), ragged([3, 4]))
    assert (
        np.abs(out.numpy() - oracles.attention(*fp64(q, k, v), [3, 4], [3, 4], True, 0.25)).max()
        < 1e-14
    )


def test_lets_gradients_through():
    q, k, v = (x.requires_grad_() for x in inputs(9, 9))
    ragged_attention(q, k, v, ragged([5, 4]), ragged([5, 4])).sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (q, v))


@pytest.mark.parametrize(
    ("q_lengths", "k_lengths"),
    [([4, 4], [4, 4]), ([4, 4], [6, 6]), ([3, 5], [5, 6]), ([5, 4], [1, 2])],
)
def test_needs_no_value_from_the_device(q_lengths, k_lengths):
    """Meta tensors have no values: whatever would read one back raises."""
    q, k, v = (x.to("meta") for x in inputs(sum(q_lengths), sum(k_lengths)))
    segments = ragged(q_lengths, "meta"), ragged(k_lengths, "meta")
    assert ragged_attention(q, k, v, *segments).shape == q.shape


def attend(q=None, k=None, v=None, q_lengths=(3, 4), k_lengths=(3, 4), **options):
    q, k, v = (y if x is None else x for x, y in zip((q, k, v), inputs(7, 7), strict=True))
    return ragged_attention(q, k, v, ragged(q_lengths), ragged(k_lengths), **options)


def on_kernel(tensors, **options):
    q, k, v = (x.to(DEVICE) for x in tensors)
    segments = ragged([3, 4], DEVICE)
    return ragged_attention(q, k, v, segments, segments, impl="triton", **options)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: attend(impl="cuda")),
        refusal(
            "too wide",
            ValueError,
            "the kernel takes head sizes 1 to 256 in torch.float16, got 257; pass impl=",
            lambda: on_kernel(inputs(7, 7, 4, 2, torch.float16, 257)),
        ),
        refusal(
            "too wide in fp32",
            ValueError,
            "the kernel takes head sizes 1 to 128 in torch.float32, got 129; pass impl=",
            lambda: on_kernel(inputs(7, 7, 4, 2, torch.float32, 129)),
        ),
        refusal(
            "scale",
            ValueError,
            "the kernel takes a scale above 0, got -0.5; pass impl=",
            lambda: on_kernel(inputs(7, 7), scale=-0.5),
        ),
        refusal(
            "gradient",
            ValueError,
            "the kernel has no backward and a tensor needs a gradient; pass impl=",
            lambda: on_kernel([x.requires_grad_() for x in inputs(7, 7)]),
        ),
        refusal(
            "segments",
            TypeError,
            "k_segments must be a Ragged, got list",
            lambda: ragged_attention(*inputs(7, 7), ragged([7]), [7]),
        ),
        refusal(
            "rank",
            ValueError,
            "q must have 3 dimensions, got shape (1, 7, 4, 16)",
            lambda: attend(heads(7, 4)[None]),
        ),
        refusal("dtype", TypeError, "q must be float32", lambda: attend(heads(7, 4).int())),
        refusal(
            "fp64",
            ValueError,
            "the kernel does not take torch.float64; pass impl=",
            lambda: on_kernel(inputs(7, 7, dtype=torch.float64)),
        ),
        refusal("mixed", TypeError, "v must be float32", lambda: attend(v=heads(7, 2).half())),
        refusal(
            "group",
            ValueError,
            "4 query heads cannot share 3 key heads",
            lambda: attend(k=heads(7, 3)),
        ),
        refusal(
            "head size",
            ValueError,
            "q has head size 16 but the keys have 8",
            lambda: attend(k=heads(7, 2, dim=8)),
        ),
        refusal(
            "values",
            ValueError,
            "keys are (7, 2, 16) but values are (6, 2, 16)",
            lambda: attend(v=heads(6, 2)),
        ),
        refusal(
            "query rows",
            ValueError,
            "the lengths of q_segments sum to 6 but q has 7 rows",
            lambda: attend(q_lengths=[3, 3]),
        ),
        refusal(
            "key rows",
            ValueError,
            "the lengths of k_segments sum to 6 but k has 7 rows",
            lambda: attend(k_lengths=[3, 3]),
        ),
        refusal(
            "sequences",
            ValueError,
            "k_segments has 1 entries for 2 segments",
            lambda: attend(k_lengths=[7]),
        ),
        refusal(
            "index rows",
            ValueError,
            "the lengths of k_segments sum to 7 but k_index has 3 rows",
            lambda: attend(k_index=torch.tensor([0, 1, 2])),
        ),
        refusal(
            "index dtype",
            TypeError,
            "k_index must be int32 or int64",
            lambda: attend(k_index=torch.zeros(7)),
        ),
        refusal("device", ValueError, "k is on meta", lambda: attend(k=heads(7, 2).to("meta"))),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
