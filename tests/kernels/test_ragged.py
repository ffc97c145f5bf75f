"""`Ragged`: lengths on the host, prefix sums on the device, built once per cut."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from ragged_cases import cut, refusal

from vtfast.kernels.ragged import Ragged


def test_knows_its_cut():
    segments = cut([3, 0, 2])
    assert segments.lengths == (3, 0, 2)
    assert segments.offsets == (0, 3, 3, 5)
    assert (segments.total, segments.max_seqlen, len(segments)) == (5, 3, 3)
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.cu_seqlens.tolist() == [0, 3, 3, 5]


def test_no_segments_are_a_cut_of_no_rows():
    segments = cut([])
    assert (segments.total, segments.max_seqlen, segments.uniform_length) == (0, 0, None)
    assert segments.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(("lengths", "common"), [([4, 4], 4), ([0, 0], 0), ([4, 3], None)])
def test_knows_a_common_length(lengths, common):
    assert cut(lengths).uniform_length == common


def test_cells_say_where_every_row_sits():
    segment, position = cut([2, 0, 3]).cells
    assert segment.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("lengths", [[2, 0, 3], [2, 2], [0, 0], []])
def test_padding_puts_every_row_in_its_line(lengths):
    segments = cut(lengths)
    x = torch.arange(segments.total * 2.0).view(-1, 2)
    padded = segments.pad(x, -1.0)
    assert padded.shape == (len(lengths), segments.max_seqlen, 2)
    assert torch.equal(padded[segments.live], x)
    assert bool((padded[~segments.live] == -1.0).all())


def test_the_same_cut_is_built_once():
    assert cut([1, 2, 3]) is cut((1, 2, 3))


def test_the_cache_is_bounded_to_64_cuts():
    first = cut([11, 12])
    for n in range(63):
        cut([n, 77])
    assert cut([11, 12]) is first
    for n in range(64):
        cut([n, 78])
    assert cut([11, 12]) is not first


def test_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cut([1]).lengths = (2,)


def test_built_in_inference_mode_it_serves_training_later():
    """It is cached across calls, and autograd refuses to save inference tensors."""
    with torch.inference_mode():
        segments = cut([90, 91, 92])
        cells = segments.cells
        live, numbers = segments.live, segments.numbers
    assert not any(x.is_inference() for x in (segments.cu_seqlens, *cells, live, numbers))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("negative", ValueError, "lengths must be >= 0, got -1", lambda: cut([2, -1])),
        refusal(
            "tensor",
            TypeError,
            "lengths must be a sequence of host ints, got Tensor",
            lambda: cut(torch.tensor([1])),
        ),
        refusal("bool", TypeError, "lengths must hold host ints, got True", lambda: cut([True])),
        refusal("float", TypeError, "lengths must hold host ints, got 1.5", lambda: cut([1.5])),
        refusal(
            "number", TypeError, "lengths must be a sequence of host ints, got int", lambda: cut(3)
        ),
        refusal("beyond int32", ValueError, "lengths sum to", lambda: cut([2**31 - 1, 1])),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("lengths", [[True, True], [1.0, 1.0]])
def test_what_equals_known_lengths_but_is_no_integer_is_refused(lengths):
    """Python takes True and 1.0 for 1 when it looks something up."""
    cut([1, 1])
    with pytest.raises(TypeError, match="lengths must hold host ints"):
        cut(lengths)


def test_lengths_may_be_any_integers():
    assert Ragged.from_lengths(np.array([2, 3]), "cpu").lengths == (2, 3)


def test_refuses_new_lengths_while_a_cuda_graph_is_captured(cuda_streams):
    """The copy would happen in replays only, and every later call find numbers nobody wrote."""
    cuda_streams.captured = True
    with pytest.raises(RuntimeError, match=r"segments of lengths \(71, 72\) are new while"):
        Ragged.from_lengths([71, 72], "cuda:0")


def test_what_is_made_of_a_cut_while_a_cuda_graph_is_captured_stays_the_graphs(cuda_streams):
    """Nobody has computed it before a replay, and whose memory it is nobody knows after one."""
    segments = dataclasses.replace(cut([3, 0, 2]), cu_seqlens=OnGPU())
    cuda_streams.captured = True
    assert segments.numbers.tolist() == [0, 1, 2]
    assert "numbers" not in vars(segments)
    cuda_streams.captured = False
    assert segments.numbers is segments.numbers


class OnGPU:
    """Offsets on a GPU, as far as they are asked, with a device that makes tensors on the CPU."""

    class device(str):
        type = "cuda"

    device = device("cpu")
