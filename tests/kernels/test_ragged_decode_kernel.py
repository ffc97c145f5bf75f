"""The kernels of `ragged_decode`: against oracle and SDPA, over splits, through an index, in views.

Caches lie between fences of NaN rows, outputs and partial results between fences of poison.
"""

import numpy as np
import oracles
import pytest
import torch
from attention_cases import DTYPES, allowed_error, fp64, heads, inputs
from devices import DEVICE
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import fenced_rows

from vtfast.kernels import _ranges, reference
from vtfast.kernels import ragged_decode as module

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory", "fenced_memory"),
    # NumPy warns when the interpreter multiplies keys that are not finite.
    pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning"),
]
NAN = float("nan")
SPLIT = module._SHARE
# Lengths and starts in a cache of 2 splits and 20 rows.
RANGES = [
    pytest.param([], [], id="no sequences"),
    pytest.param([1], [0], id="one row"),
    pytest.param([5, 0, 7, 0], [0, 5, 40, 2 * SPLIT + 20], id="empty ones, one past the end"),
    pytest.param([63, 64, 65], [3, 70, 150], id="half a split, one less, one more"),
    pytest.param([SPLIT - 1, SPLIT, SPLIT + 1], [0, 9, 20], id="around a split, overlapping"),
    pytest.param([2 * SPLIT + 19], [1], id="to the end of the cache"),
]


def on_device(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.fixture(params=["host", "device"])
def form(request):
    """Lengths and starts as host ints, and as tensors."""
    return list if request.param == "host" else on_device


def run(q, k, v, lengths, starts, form=list, **options):
    """The kernels on fenced copies; with lengths on the device a bound keeps the work small."""
    q, k, v = q.to(DEVICE), fenced_rows(k, device=DEVICE), fenced_rows(v, device=DEVICE)
    if form is on_device:
        options.setdefault("max_length", max(lengths, default=0))
    ranges = {"lengths": form(lengths), "starts": form(starts)}
    return module.ragged_decode(q, k, v, **ranges, impl="triton", **options)


def check(q, k, v, lengths, starts, form=list, scale=0.3):
    out = run(q, k, v, lengths, starts, form, scale=scale)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    exact = oracles.decode(*fp64(q, k, v), starts, lengths, scale)
    rows = [row for a, n in zip(starts, lengths, strict=True) for row in range(a, a + n)]
    own = k[rows], v[rows], [1] * len(lengths), lengths
    allowed = allowed_error(exact, q, *own, False, scale)
    assert np.abs(*fp64(out) - exact).max(initial=0.0) <= allowed


@pytest.mark.parametrize(("lengths", "starts"), RANGES)
def test_errs_at_most_twice_as_much_as_sdpa(lengths, starts, form):
    check(*inputs(len(lengths), 2 * SPLIT + 20, 2, 1), lengths, starts, form)


@pytest.mark.parametrize(
    ("group", "dtype"),
    [
        pytest.param((2, 2), torch.float32, id="1"),
        pytest.param((4, 1), torch.float16, id="4"),
        pytest.param((14, 2), torch.bfloat16, id="7"),
        pytest.param((20, 1), torch.float32, id="20"),
        pytest.param((20, 1), torch.bfloat16, id="20 in bf16"),
    ],
)
def test_query_heads_share_key_heads_in_groups(group, dtype):
    """Groups of more than 16 heads are shared by several programs."""
    check(*inputs(2, 90, *group, dtype), [70, 9], [1, 80])


@pytest.mark.parametrize("dim", [1, 16, 40, 64, 80, 128, 256])
def test_head_sizes_between_powers_of_2_are_padded(dim):
    check(*inputs(1, 90, 2, 1, torch.float16, dim), [70], [1])


@examples(40)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50)), max_size=3),
    st.sampled_from([(1, 1), (2, 2), (3, 1)]),
    st.sampled_from([8, 24, 64]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_batch_errs_at_most_twice_as_much_as_sdpa(pairs, number, dim, dtype, host, seed):
    lengths, starts = [n for n, _ in pairs], [start for _, start in pairs]
    tensors = inputs(len(pairs), 350, *number, dtype, dim, seed)
    check(*tensors, lengths, starts, list if host else on_device, dim**-0.5)


@pytest.fixture
def four_splits(monkeypatch):
    """At most, so that they are longer than 128 keys where there are more; merged two by two."""
    module._settings.cache_clear()
    monkeypatch.setattr(module, "_SPLITS", 4)
    monkeypatch.setattr(module, "_MERGED", 2)
    yield
    module._settings.cache_clear()


def test_long_sequences_have_longer_splits(four_splits):
    """The largest logits are in the last ones, so that all before have to be scaled down."""
    q, k, v = inputs(3, 5 * SPLIT, 2, 1)
    k *= torch.linspace(0, 4, len(k))[:, None, None]
    check(q, k, v, [4 * SPLIT, 4 * SPLIT + 1, 9], [0, 3, 5])


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_rows_outside_every_sequence_may_hold_anything(value, form):
    """A cache has rows that are not written yet, also in the block where a sequence ends."""
    q, k, v = inputs(2, 200, 2, 1)
    lengths, starts = [70, 5], [3, 130]
    clean = run(q, k, v, lengths, starts, form)
    used = torch.zeros(200, dtype=torch.bool)
    used[3:73], used[130:135] = True, True
    k[~used], v[~used] = value, value
    assert torch.equal(run(q, k, v, lengths, starts, form), clean)


def test_nan_stays_in_its_sequence():
    q, k, v = inputs(2, 200, 2, 1)
    k[40] = NAN
    out = run(q, k, v, [30, 150], [0, 30])
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_large_logits_do_not_overflow():
    q, k, v = inputs(1, 200, 1, 1)
    check(q * 100, k * 100, v, [200], [0], scale=1.0)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_reads_the_cache_through_an_index_with_shared_rows(index_dtype, form):
    """Rows that the index does not name are NaN."""
    q, k, v = inputs(2, 40, 2, 1, torch.float16)
    rows = torch.randint(0, 39, (150,), generator=torch.Generator().manual_seed(4))
    unused = torch.ones(40, dtype=torch.bool).index_fill(0, rows, False)
    k[unused], v[unused] = NAN, NAN
    index = fenced_rows(rows.to(index_dtype), 39, DEVICE)
    out = run(q, k, v, [7, 140], [2, 9], form, k_index=index)
    assert torch.equal(out, run(q, k[rows], v[rows], [7, 140], [2, 9], form))


def test_reads_views_where_they_lie():
    """Layers of one buffer, head-major and with room before and behind; queries of a batch."""
    whole = torch.randn(3, 2, 90, 16, generator=torch.Generator().manual_seed(5))
    k, v = (whole[layer, :, 4:-4].transpose(0, 1) for layer in (1, 2))
    q = heads(4, 2).transpose(0, 1)[:, :4].to(DEVICE)
    columns_apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]
    expected = run(q, k.contiguous(), v.contiguous(), [9, 70], [60, 3])
    for views in ((k, v), columns_apart):
        views = (x.to(DEVICE) for x in views)
        ranges = {"lengths": [9, 70], "starts": [60, 3]}
        assert torch.equal(module.ragged_decode(q, *views, **ranges, impl="triton"), expected)


def test_lengths_may_be_any_view():
    q, k, v = inputs(2, 90, 2, 1)
    both = on_device([[9, 60], [70, 3]])
    ranges = {"lengths": both[:, 0], "starts": both[:, 1]}
    out = module.ragged_decode(*(x.to(DEVICE) for x in (q, k, v)), **ranges, impl="triton")
    assert torch.equal(out, run(q, k, v, [9, 70], [60, 3]))


def test_rows_may_be_more_than_2_to_the_31_elements_away():
    """Three rows 2^30 elements apart; NumPy's zeros take no memory before they are written."""
    storage = torch.from_numpy(np.zeros(2**31 + 16, dtype=np.float16)).to(DEVICE)
    far = storage.as_strided((3, 1, 16), (2**30, 16, 1))
    near = heads(3, 1, torch.float16).to(DEVICE)
    far.copy_(near)
    assert torch.equal(
        module.ragged_decode(near[:1], far, far, [3], impl="triton"),
        module.ragged_decode(near[:1], near, near, [3], impl="triton"),
    )


def test_a_sequence_gets_the_same_bits_alone_and_in_a_batch(form):
    """Whatever the others' lengths, the rows of the cache and the bound on lengths."""
    q, k, v = inputs(3, 700, 2, 1, torch.bfloat16)
    lengths, starts = [300, 0, 7], [20, 0, 400]
    together = run(q, k, v, lengths, starts, form)
    for s, (a, n) in enumerate(zip(starts, lengths, strict=True)):
        own = k[a : a + n + 30], v[a : a + n + 30]
        assert torch.equal(run(q[s : s + 1], *own, [n], [0], form), together[s : s + 1])
        bound = {"max_length": n + 200} if form is on_device else {}
        assert torch.equal(run(q[s : s + 1], k, v, [n], [a], form, **bound), together[s : s + 1])


def test_lengths_on_the_device_need_no_bound():
    q, k, v = inputs(2, 300, 1, 1)
    out = run(q, k, v, [9, 140], [0, 150], on_device, max_length=None)
    assert torch.equal(out, run(q, k, v, [9, 140], [0, 150]))


@pytest.mark.parametrize("bound", [0, 7, 130])
def test_rows_past_max_length_are_ignored(bound, impl):
    """Lengths on the device are not checked, so this alone keeps reads inside the bound."""
    q, k, v = (x.to(torch.get_default_device()) for x in inputs(2, 300, 2, 1))
    ranges = {"starts": torch.tensor([0, 150], dtype=torch.int32), "impl": impl}
    shortened, whole = (torch.tensor(n, dtype=torch.int32) for n in ([bound, 5], [140, 5]))
    if bound < 5:
        shortened[1] = bound
    out = module.ragged_decode(q, k, v, whole, max_length=bound, **ranges)
    expected = module.ragged_decode(q, k, v, shortened, **ranges)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_starts_on_the_device_default_to_back_to_back():
    q, k, v = (x.to(DEVICE) for x in inputs(2, 12, 2, 1))
    out = module.ragged_decode(q, k, v, on_device([5, 7]), impl="triton")
    assert torch.equal(out, run(q.cpu(), k.cpu(), v.cpu(), [5, 7], [0, 5]))


def test_host_ints_are_brought_to_the_device_once_for_all_layers():
    device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)
    first = _ranges.on_device((5, 7, 0, 5), device)
    assert _ranges.on_device((5, 7, 0, 5), device) is first
    assert [x.tolist() for x in first] == [[5, 7], [0, 5]]


def test_new_host_ints_are_refused_while_a_cuda_graph_is_captured(cuda_streams):
    cuda_streams.captured = True
    with pytest.raises(RuntimeError, match=r"ranges of rows .* \(3, 4, 0, 3\) are new while"):
        _ranges.on_device((3, 4, 0, 3), torch.device("cuda", 0))


@pytest.mark.skipif(DEVICE == "cpu", reason='"auto" never takes the kernel on a CPU')
def test_gradients_fall_back_to_pytorch(monkeypatch):
    monkeypatch.setattr(module, "_ragged_decode", None)
    q, k, v = (x.to(DEVICE) for x in inputs(2, 12, 2, 1))
    v.requires_grad_()
    module.ragged_decode(q, k, v, [5, 7]).sum().backward()
    assert v.grad.abs().sum() > 0


def test_agrees_with_the_reference_on_the_same_device(form):
    q, k, v = (x.to(DEVICE) for x in inputs(2, 300, 2, 1))
    lengths, starts = form([140, 9]), form([3, 160])
    torch.testing.assert_close(
        module.ragged_decode(q, k, v, lengths, starts=starts, impl="triton"),
        reference.ragged_decode(q, k, v, lengths, starts=starts),
        rtol=0,
        atol=2e-6,
    )
