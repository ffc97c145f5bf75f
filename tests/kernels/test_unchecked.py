"""The entries of the runtime, without checks and dispatcher, give what the public ops give, bit by
bit; `torch.compile` sees the registered op."""

import pytest
import torch
from attention_cases import LENGTHS, inputs
from devices import DEVICE

from vtfast.kernels import ragged_attention as ragged_attention_module
from vtfast.kernels._packed_attention import CopiedStep, EagerStep, eager_step
from vtfast.kernels.gather import gather_rows, gather_unchecked
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import attend_unchecked, ragged_attention
from vtfast.kernels.ragged_decode import Decoder, ragged_decode

pytestmark = pytest.mark.usefixtures("poisoned_memory")
kernels = pytest.mark.parametrize("kernel", [False, True], ids=["eager", "triton"])


def where(kernel):
    """The device and the `impl` of a public op."""
    return (DEVICE, "triton") if kernel else ("cpu", "eager")


@kernels
@pytest.mark.parametrize("indexed", [False, True], ids=["in place", "index"])
@pytest.mark.parametrize(("q_lengths", "k_lengths"), LENGTHS)
def test_attention(q_lengths, k_lengths, indexed, kernel):
    device, impl = where(kernel)
    rows = sum(k_lengths)
    q, k, v = (t.to(device) for t in inputs(sum(q_lengths), max(rows, 1) if indexed else rows))
    segments = [Ragged.from_lengths(n, device) for n in (q_lengths, k_lengths)]
    index = torch.arange(rows, device=device).flip(0) if indexed else None
    found = attend_unchecked(q, k, v, *segments, 0.3, index, kernel)
    expected = ragged_attention(q, k, v, *segments, scale=0.3, k_index=index, impl=impl)
    assert torch.equal(found, expected)


NEW = "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa"
OLD = "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal, scale"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(NEW, {"window_size": (-1, 0), "enable_gqa": True}), (OLD, {"is_causal": True})],
)
def test_the_switch_to_pytorchs_varlen_attention(monkeypatch, arguments, named):
    """It runs on CUDA alone: here its call is watched, in the form of either release."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    seen = []
    scope = {"note": seen.append}
    exec(f"def varlen_attn({arguments}):\n    note(locals())\n    return query", scope)
    monkeypatch.setattr(varlen, "varlen_attn", scope["varlen_attn"])
    monkeypatch.setattr(ragged_attention_module, "_PREFERS_VARLEN", True)
    q, k, v = (t.half() for t in inputs(7, 9))
    segments = Ragged.from_lengths([3, 4], "cpu"), Ragged.from_lengths([5, 4], "cpu")
    assert attend_unchecked(q, k, v, *segments, 0.3, None, True) is q
    [call] = seen
    cuts = {"cu_seq_q": segments[0].cu_seqlens, "cu_seq_k": segments[1].cu_seqlens}
    expected = {"query": q, "key": k, "value": v, **cuts, "max_q": 4, "max_k": 5, "scale": 0.3}
    assert call == expected | named
    q, k, v = (t.to(DEVICE) for t in (q, k, v))
    segments = [Ragged.from_lengths(s.lengths, DEVICE) for s in segments]
    index = torch.arange(9, device=DEVICE)
    attend_unchecked(q, k, v, *segments, 0.3, index, True)  # an index goes to our kernel
    assert len(seen) == 1


@kernels
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("number", [0, 1, 9])
def test_gathering(number, dtype, kernel):
    """Rows that are contiguous, strided, of one number, and none at all."""
    device, impl = where(kernel)
    x = torch.randn(7, 40, device=device)
    tensors = [
        x,
        x[:, ::2],
        x.bfloat16()[:, 3:20],
        x[:, 0],
        torch.arange(7, device=device),
        x[:, :0],
    ]
    index = torch.randint(7, (number,), dtype=dtype).to(device)
    found = gather_unchecked(index, tensors, kernel)
    expected = gather_rows(index, *tensors, impl=impl)
    assert all(map(torch.equal, found, expected))
    assert len(found) == len(expected)


@pytest.mark.parametrize("lengths", [[], [0], [1], [5, 0, 300], [128] * 3, [129, 127, 640]])
def test_decoding(lengths):
    """The longest is what the public op takes it for: the longest there is."""
    heads, size, rows = (6, 2), 16, sum(lengths) + 3
    q = torch.randn(len(lengths), heads[0], size, device=DEVICE)
    k, v = (torch.randn(rows, heads[1], size, device=DEVICE) for _ in range(2))
    starts = [sum(lengths[:s]) + 2 for s in range(len(lengths))]
    spans = [torch.tensor(n, dtype=torch.int32, device=DEVICE) for n in (lengths, starts)]
    found = Decoder(*spans, max(lengths, default=0))(q, k, v, 0.3)
    assert torch.equal(
        found, ragged_decode(q, k, v, lengths, starts=starts, scale=0.3, impl="triton")
    )


@pytest.mark.parametrize("lengths", [[1], [5, 3, 300], [128] * 3, [129, 127, 640]])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_decoding_in_pytorch_from_copied_rows(lengths, heads):
    """The caches are small enough; larger ones are read in place."""
    size, rows = 8, sum(lengths) + 3
    q = torch.randn(len(lengths), heads[0], 1, size)
    k, v = (torch.randn(rows, heads[1], size) for _ in range(2))
    starts = [sum(lengths[:s]) + 2 for s in range(len(lengths))]
    step = eager_step(lengths, starts, k)
    assert isinstance(step, CopiedStep)
    expected = EagerStep(lengths, starts).attend(q, k, v, 0.3)
    torch.testing.assert_close(step.attend(q, k, v, 0.3), expected, rtol=0, atol=1e-6)
    assert isinstance(eager_step(lengths, starts, torch.empty(rows, 512, 64)), EagerStep) == (
        2 * max(lengths) * 512 * 64 * 4 > 2**18
    )


def test_compiled_code_sees_the_registered_ops():
    """A launcher cannot be traced."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(n.target) for n in graph.graph.nodes if "vtfast" in str(n.target))
        return graph.forward

    x, index = torch.randn(6, 2, 16, device=DEVICE), torch.arange(6, device=DEVICE)
    cut = Ragged.from_lengths([4, 2], DEVICE)
    spans = [torch.tensor(n, dtype=torch.int32, device=DEVICE) for n in ([4, 2], [0, 4])]
    decoder = Decoder(*spans, 4)

    def step(x):
        [rows] = gather_unchecked(index, [x], True)
        rows = attend_unchecked(rows, x, x, cut, cut, 0.3, None, True)
        return decoder(rows[:2], x, x, 0.3)

    expected = step(x)
    assert torch.equal(torch.compile(step, backend=backend, fullgraph=True)(x), expected)
    names = ("gather_rows", "ragged_attention", "ragged_decode")
    assert seen == [f"vtfast.{name}.default" for name in names]
