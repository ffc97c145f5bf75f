"""`compact`: which tokens of whole sequences stay when visual ones are dropped, and where."""

import doctest
import inspect
import re
import sys
from collections.abc import Sequence
from unittest import mock

import oracles
import pytest
import torch
from devices import DEVICE
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import KERNEL, THOROUGH, ragged, refusal
from torch._subclasses.fake_tensor import FakeTensorMode

from vtfast.kernels import _staying, reference
from vtfast.kernels import compact as module
from vtfast.kernels._checks import INDEX_DTYPES
from vtfast.kernels.compact import compact

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")

# The tokens of each sample: "." text, "v" visual and dropped, "P" visual and picked.
SAMPLES = [
    pytest.param([], id="no samples"),
    pytest.param([""], id="an empty sample"),
    pytest.param(["..."], id="text alone"),
    pytest.param(["v"], id="a visual token alone, dropped"),
    pytest.param(["P"], id="a visual token alone, picked"),
    pytest.param(["..vPvvPv..."], id="one sample"),
    pytest.param(["..vvv.."], id="no picks"),
    pytest.param(["..PPP.."], id="all picked"),
    pytest.param(["vvP", "Pvv"], id="visual tokens back to back over a border"),
    pytest.param(["..P", "vv.", ""], id="a sample that ends in a pick, and one that begins"),
    pytest.param(["", ".PvP", "", "", "...", "vP.v", ""], id="empty samples and text between"),
    pytest.param(["vvv", "vvv", "vvv"], id="nothing stays"),
    pytest.param([".v" * 65 + "P" * 63, "P" + "." * 127 + "v"], id="around a program of 128"),
]


def layout(samples: Sequence[str]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Picks, visual tokens, lengths before and after."""
    tokens = "".join(samples)
    visual = [i for i, token in enumerate(tokens) if token != "."]
    picks = [v for v, i in enumerate(visual) if tokens[i] == "P"]
    return picks, visual, list(map(len, samples)), [len(s) - s.count("v") for s in samples]


def check(samples: Sequence[str], impl: str, dtype: torch.dtype = torch.int32) -> None:
    """Everything that `compact` returns is what plain loops find."""
    picks, visual, lengths, after = layout(samples)
    expected, now, cuts = oracles.compact(picks, visual, lengths)
    total = sum(lengths)
    places = torch.arange(total) * 7 % max(1, total), None, torch.arange(total) * 2**33
    stay, kept, then, segments, there = compact(
        torch.tensor(picks, dtype=dtype),
        torch.tensor(visual, dtype=torch.int64),
        ragged(lengths),
        after,
        places,
        impl=impl,
    )
    assert {x.dtype for x in (stay, kept, then, *there)} == {torch.int64}
    assert stay.tolist() == expected
    assert kept.tolist() == [visual[pick] for pick in picks]
    assert then.tolist() == now
    assert [x.tolist() for x in there] == [
        expected if x is None else [x.tolist()[i] for i in expected] for x in places
    ]
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.cu_seqlens.tolist() == cuts == list(segments.offsets)
    assert segments.lengths == tuple(after)
    assert segments.max_seqlen == max(after, default=0)


@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
@pytest.mark.parametrize("samples", SAMPLES)
def test_drops_the_visual_tokens_that_are_not_picked(impl, samples, dtype):
    check(samples, impl, dtype)


sequences = st.lists(st.text(".vP", max_size=9), max_size=4)


@THOROUGH
@given(sequences)
def test_agrees_with_plain_loops_eagerly(samples):
    check(samples, "eager")


@KERNEL
@given(sequences, st.sampled_from(INDEX_DTYPES))
def test_the_kernel_agrees_with_plain_loops(samples, dtype):
    with torch.device(DEVICE):
        check(samples, "triton", dtype)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 127, 128, 129, 255])
def test_the_kernel_searches_every_number_of_visual_tokens_to_its_end(device, number):
    """Around powers of two, where the search takes one more step; one program takes 128 tokens."""
    picked = "".join("vP"[i % 3 == 0] for i in range(number))
    with torch.device(device):
        check([f".{picked}.", f"{picked}..", "."], "triton")


def example(impl: str = "auto", **changed):
    picks, visual, lengths, after = layout(["..vPv.", "PvP"])
    arguments = {
        "picks": torch.tensor(picks),
        "visual": torch.tensor(visual),
        "segments": ragged(lengths),
        "lengths": after,
        "places": (torch.arange(9), None),
    }
    return compact(**{**arguments, **changed}, impl=impl)


def test_needs_one_launch(device):
    with torch.device(device), mock.patch.object(module, "_compact_kernel") as kernel:
        example("triton")
    assert kernel.__getitem__.return_value.call_count == 1


def test_strided_arguments_are_read(impl):
    picks, visual, lengths, after = layout(["..vPv.", "PvP"])
    spread = [torch.tensor(x).repeat_interleave(2)[::2] for x in (picks, visual)]
    there = torch.arange(18)[::2]
    stay, _, _, _, (places,) = compact(*spread, ragged(lengths), after, (there,), impl=impl)
    assert torch.equal(stay, example(impl)[0])
    assert torch.equal(places, 2 * stay)


@pytest.mark.parametrize("picks", [[1, 1, 4], [0, 0, 0]], ids=["twice", "three times"])
def test_the_kernel_writes_all_of_its_result_even_for_repeated_picks(device, picks):
    """On a GPU the rows that a user's method returns are not read. What is never written would be
    anything, and rows would be gathered by it."""
    with torch.device(device):
        stay, *_ = example("triton", picks=torch.tensor(picks))
    assert stay.min() >= 0
    assert stay.max() < 9
    assert stay.tolist() == sorted(stay.tolist())


@pytest.fixture
def without_numpy(monkeypatch):
    """As on other devices than the CPU."""
    monkeypatch.setattr(_staying, "_staying_numpy", lambda *_: 1 / 0)


@pytest.mark.parametrize("samples", SAMPLES)
def test_plain_pytorch_drops_the_same_tokens(without_numpy, monkeypatch, samples):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check(samples, "eager")


def test_needs_no_value_from_the_device(without_numpy):
    """Meta tensors have no values: whatever would read one back raises."""
    picks, visual = (torch.empty(n, dtype=torch.int64, device="meta") for n in (1, 2))
    stay, kept, now, *_ = compact(picks, visual, ragged([9], "meta"), [8])
    assert (stay.shape, kept.shape, now.shape) == ((8,), (1,), (1,))


def test_can_be_traced_with_fake_tensors(without_numpy):
    segments, _ = (
        ragged([9], "cpu"),
        ragged([8], "cpu"),
    )  # kept, and so not fake
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        picks, visual = (mode.from_tensor(torch.tensor(x)) for x in ([1], [2, 3]))
        stay, *_ = compact(picks, visual, segments, [8])
    assert stay.shape == (8,)


def test_the_example_in_its_docstring_holds():
    outcome = doctest.testmod(sys.modules[compact.__module__])
    assert (outcome.failed, outcome.attempted > 0) == (0, True)


def test_the_reference_has_the_same_signature():
    parameters = dict(inspect.signature(compact).parameters)
    assert parameters.pop("impl").default == "auto"
    assert list(parameters.values()) == [*inspect.signature(reference.compact).parameters.values()]


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: example("cuda")),
        refusal(
            "segments",
            TypeError,
            "segments must be a Ragged, got list",
            lambda: example(segments=[9]),
        ),
        refusal(
            "picks",
            TypeError,
            "picks must be int32 or int64, got torch.bool",
            lambda: example(picks=torch.tensor([True])),
        ),
        refusal(
            "visual",
            TypeError,
            "visual must be int64, got torch.int32",
            lambda: example(visual=torch.tensor([1], dtype=torch.int32)),
        ),
        refusal(
            "samples",
            ValueError,
            "lengths has 1 entries for 2 segments",
            lambda: example(lengths=[6]),
        ),
        refusal(
            "lengths",
            ValueError,
            "lengths sum to 7, but of 9 tokens, 6 of them visual, 6 stay with 3 picks",
            lambda: example(lengths=[4, 3]),
        ),
        refusal(
            "places",
            ValueError,
            "the lengths of segments sum to 9 but places[0] has 8 rows",
            lambda: example(places=(None, torch.arange(8))),
        ),
        refusal(
            "device",
            ValueError,
            "picks is on meta but the other arguments are on cpu",
            lambda: example(picks=torch.empty(3, dtype=torch.int64, device="meta")),
        ),
    ],
)
def test_refuses(error, message, call):
    with torch.device("cpu"), pytest.raises(error, match=re.escape(message)):
        call()
