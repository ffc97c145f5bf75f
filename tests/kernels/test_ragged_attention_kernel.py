"""The kernel of `ragged_attention`: against oracle and SDPA, in blocks, through an index, in views.

Its inputs lie between fences of NaN rows, its output between fences of poison.
"""

import numpy as np
import oracles
import pytest
import torch
from attention_cases import DTYPES, LENGTHS, allowed_error, fp64, heads, inputs
from devices import DEVICE
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import fenced_rows, ragged

from vtfast.kernels import ragged_attention as module
from vtfast.kernels import reference

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies keys that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
NAN = float("nan")
# Around a block of 64 keys and tiles of 64 queries: q shorter, equal, longer than k.
BLOCKS = [
    pytest.param([63, 64, 65], [63, 64, 65], id="a block, one less, one more"),
    pytest.param([65], [127], id="two blocks less one"),
    pytest.param([64], [128], id="two blocks"),
    pytest.param([1], [129], id="two blocks and one, one query"),
    pytest.param([130], [66], id="more queries than keys"),
    pytest.param([70], [5], id="a tile that sees nothing"),
]


@pytest.fixture(params=["small", "large"])
def tile(request, monkeypatch):
    """Both tiles of a pair, whatever the batch."""
    if request.param == "large":
        monkeypatch.setattr(module, "_WAVE", 0)


def run(q, k, v, q_lengths, k_lengths, **options):
    """The kernel on fenced copies."""
    q, k, v = (fenced_rows(x, device=DEVICE) for x in (q, k, v))
    segments = ragged(q_lengths, DEVICE), ragged(k_lengths, DEVICE)
    return module.ragged_attention(q, k, v, *segments, impl="triton", **options)


def check(q, k, v, q_lengths, k_lengths, causal, scale=0.3):
    out = run(q, k, v, q_lengths, k_lengths, causal=causal, scale=scale)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    exact = oracles.attention(*fp64(q, k, v), q_lengths, k_lengths, causal, scale)
    allowed = allowed_error(exact, q, k, v, q_lengths, k_lengths, causal, scale)
    assert np.abs(*fp64(out) - exact).max(initial=0.0) <= allowed


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), LENGTHS)
def test_errs_at_most_twice_as_much_as_sdpa(q_lengths, k_lengths, causal):
    check(*inputs(sum(q_lengths), sum(k_lengths), 2, 1), q_lengths, k_lengths, causal)


@pytest.mark.parametrize(
    ("group", "dtype", "causal"),
    [
        pytest.param((4, 4), torch.float32, True, id="1"),
        pytest.param((4, 1), torch.bfloat16, False, id="4"),
        pytest.param((7, 1), torch.float16, True, id="7"),
    ],
)
def test_query_heads_share_key_heads_in_groups(group, dtype, causal):
    check(*inputs(12, 11, *group, dtype), [5, 7], [9, 2], causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), BLOCKS)
def test_blocks_meet_without_a_seam(q_lengths, k_lengths, causal, tile):
    dtype = torch.bfloat16 if causal else torch.float16
    check(*inputs(sum(q_lengths), sum(k_lengths), 1, 1, dtype, 64), q_lengths, k_lengths, causal)


@pytest.mark.parametrize("dim", [1, 16, 40, 64, 80, 128, 256])
def test_head_sizes_between_powers_of_2_are_padded(dim):
    check(*inputs(9, 9, 1, 1, torch.float16, dim), [5, 4], [5, 4], True)


@examples(40)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 140)), max_size=3),
    st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    st.sampled_from([8, 24, 64]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_batch_errs_at_most_twice_as_much_as_sdpa(lengths, number, dim, dtype, causal, seed):
    q_lengths, k_lengths = [nq for nq, _ in lengths], [nk for _, nk in lengths]
    tensors = inputs(sum(q_lengths), sum(k_lengths), *number, dtype, dim, seed)
    check(*tensors, q_lengths, k_lengths, causal, dim**-0.5)


@pytest.mark.parametrize("q_lengths", [[6], [6, 2], [70]])
def test_queries_before_the_first_key_give_exactly_zero(q_lengths):
    k_lengths = [n - 2 for n in q_lengths]
    out = run(*inputs(sum(q_lengths), sum(k_lengths)), q_lengths, k_lengths)
    assert out[:2].eq(0).all()
    assert out[2 : q_lengths[0]].ne(0).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("first", [6, 64, 66])
def test_a_sequence_does_not_read_its_neighbours(first, causal):
    """Not even with NaN or infinity in its queries, keys and values: 0 times NaN would show."""
    q, k, v = inputs(first + 6, first + 6, 2, 1)
    expected = run(q, k, v, [first, 6], [first, 6], causal=causal)[:first]
    for x, value in ((q, NAN), (k, float("inf")), (v, NAN)):
        x[first:] = value
    assert torch.equal(run(q, k, v, [first, 6], [first, 6], causal=causal)[:first], expected)


def test_a_hidden_key_does_not_count_whatever_it_holds():
    """A key after the query in its own sequence, in the same block."""
    q, k, v = inputs(9, 9, 2, 1)
    expected = run(q, k, v, [9], [9])[:5]
    k[5:] = NAN
    assert torch.equal(run(q, k, v, [9], [9])[:5], expected)


def test_nan_stays_with_the_query_that_sees_it():
    q, k, v = inputs(9, 9, 2, 1)
    k[5] = NAN
    out = run(q, k, v, [9], [9])
    assert out[5:].isnan().all()
    assert out[:5].isfinite().all()


def test_large_logits_do_not_overflow():
    q, k, v = inputs(5, 70, 1, 1)
    check(q * 100, k * 100, v, [5], [70], True, 1.0)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), [([3, 4], [4, 5]), ([2, 65], [70, 131])])
def test_reads_keys_through_an_index_with_shared_rows(q_lengths, k_lengths, index_dtype):
    """Rows that the index does not name are NaN."""
    q, k, v = inputs(sum(q_lengths), 40, 2, 1, torch.float16)
    rows = torch.randint(0, 39, (sum(k_lengths),), generator=torch.Generator().manual_seed(4))
    unused = torch.ones(40, dtype=torch.bool).index_fill(0, rows, False)
    k[unused], v[unused] = NAN, NAN
    index = fenced_rows(rows.to(index_dtype), 39, DEVICE)
    out = run(q, k, v, q_lengths, k_lengths, k_index=index)
    direct = run(q, k[rows], v[rows], q_lengths, k_lengths)
    assert torch.equal(out, direct)


def test_an_index_may_be_any_view():
    q, k, v = inputs(4, 9)
    index = torch.tensor([[7, 0], [0, 0], [2, 0], [7, 0]], device=DEVICE)[:, 0]
    assert torch.equal(
        run(q, k, v, [4], [4], k_index=index), run(q, k, v, [4], [4], k_index=index.contiguous())
    )


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="head-major"),
        pytest.param(lambda x: torch.stack([x, x + 1])[0], id="one of a batch"),
        pytest.param(lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]], id="part of a row"),
        pytest.param(lambda x: torch.cat([x[..., :3], x], 2)[..., 3:], id="not aligned"),
        pytest.param(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), id="columns apart"),
        pytest.param(lambda x: torch.cat([x, x])[::2][: len(x)], id="every other row"),
    ],
)
def test_reads_views_where_they_lie(view):
    views = [view(x).to(DEVICE) for x in inputs(12, 12)]
    segments = ragged([5, 7], DEVICE)
    assert torch.equal(
        module.ragged_attention(*views, segments, segments, impl="triton"),
        run(*(x.cpu().contiguous() for x in views), [5, 7], [5, 7]),
    )


def test_rows_may_be_more_than_2_to_the_31_elements_away():
    """Three rows 2^30 elements apart; NumPy's zeros take no memory before they are written."""
    storage = torch.from_numpy(np.zeros(2**31 + 16, dtype=np.float16)).to(DEVICE)
    far = storage.as_strided((3, 1, 16), (2**30, 16, 1))
    near = heads(3, 1, torch.float16).to(DEVICE)
    far.copy_(near)
    segments = ragged([3], DEVICE)
    assert torch.equal(
        module.ragged_attention(far, far, far, segments, segments, impl="triton"),
        module.ragged_attention(near, near, near, segments, segments, impl="triton"),
    )


@pytest.mark.parametrize("lengths", [[5, 66, 0, 9], [9, 9, 9]])
def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(lengths):
    q, k, v = inputs(sum(lengths), sum(lengths), 2, 1, torch.bfloat16)
    together = run(q, k, v, lengths, lengths).split(lengths)
    for (a, b), batched in zip(
        zip(ragged(lengths).offsets, ragged(lengths).offsets[1:], strict=False),
        together,
        strict=True,
    ):
        assert torch.equal(run(q[a:b], k[a:b], v[a:b], [b - a], [b - a]), batched)


def test_both_tiles_of_a_pair_give_the_same_bits(monkeypatch):
    q, k, v = inputs(200, 200, 1, 1, torch.bfloat16, 64)
    small = run(q, k, v, [70, 130], [130, 70])
    monkeypatch.setattr(module, "_WAVE", 0)
    assert torch.equal(run(q, k, v, [70, 130], [130, 70]), small)


@pytest.mark.skipif(DEVICE == "cpu", reason='"auto" never takes the kernel on a CPU')
def test_gradients_fall_back_to_pytorch(monkeypatch):
    monkeypatch.setattr(module, "_ragged_attention", None)
    q, k, v = (x.to(DEVICE) for x in inputs(9, 9))
    v.requires_grad_()
    segments = ragged([5, 4], DEVICE)
    module.ragged_attention(q, k, v, segments, segments).sum().backward()
    assert v.grad.abs().sum() > 0


def test_agrees_with_the_reference_on_the_same_device():
    tensors = [x.to(DEVICE) for x in inputs(9, 9)]
    segments = ragged([5, 4], DEVICE)
    torch.testing.assert_close(
        module.ragged_attention(*tensors, segments, segments, impl="triton"),
        reference.ragged_attention(*tensors, segments, segments),
        rtol=0,
        atol=2e-6,
    )
