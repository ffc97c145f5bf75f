"""`Ragged`: lengths on the host, prefix sums on the device, built once for equal lengths."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from ragged_cases import ragged, refusal

from vtfast.kernels.ragged import Ragged


def test_has_lengths_offsets_and_prefix_sums():
    segments = ragged([3, 0, 2])
    assert segments.lengths == (3, 0, 2)
    assert segments.offsets == (0, 3, 3, 5)
    assert (segments.total, segments.max_seqlen, len(segments)) == (5, 3, 3)
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.cu_seqlens.tolist() == [0, 3, 3, 5]


def test_a_batch_may_have_no_segments():
    segments = ragged([])
    assert (segments.total, segments.max_seqlen, segments.uniform_length) == (0, 0, None)
    assert segments.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(("lengths", "common"), [([4, 4], 4), ([0, 0], 0), ([4, 3], None)])
def test_uniform_length_is_the_length_of_all_segments(lengths, common):
    assert ragged(lengths).uniform_length == common


def test_cells_are_segment_and_position_of_every_row():
    segment, position = ragged([2, 0, 3]).cells
    assert segment.tolist() == [0, 0, 2, 2, 2]
    assert position.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("lengths", [[2, 0, 3], [2, 2], [0, 0], []])
def test_pad_puts_every_row_in_the_line_of_its_segment(lengths):
    segments = ragged(lengths)
    x = torch.arange(segments.total * 2.0).view(-1, 2)
    padded = segments.pad(x, -1.0)
    assert padded.shape == (len(lengths), segments.max_seqlen, 2)
    assert torch.equal(padded[segments.live], x)
    assert bool((padded[~segments.live] == -1.0).all())


def test_equal_lengths_are_built_once():
    assert ragged([1, 2, 3]) is ragged((1, 2, 3))


def test_the_cache_is_bounded_to_64_entries():
    first = ragged([11, 12])
    for n in range(63):
        ragged([n, 77])
    assert ragged([11, 12]) is first
    for n in range(64):
        ragged([n, 78])
    assert ragged([11, 12]) is not first


def test_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ragged([1]).lengths = (2,)


def test_built_in_inference_mode_it_serves_training_later():
    """It is cached across calls, and autograd refuses to save inference tensors."""
    with torch.inference_mode():
        segments = ragged([90, 91, 92])
        cells = segments.cells
        live, numbers = segments.live, segments.numbers
    assert not any(x.is_inference() for x in (segments.cu_seqlens, *cells, live, numbers))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("negative", ValueError, "lengths must be >= 0, got -1", lambda: ragged([2, -1])),
        refusal(
            "tensor",
            TypeError,
            "lengths must be a sequence of host ints, got Tensor",
            lambda: ragged(torch.tensor([1])),
        ),
        refusal("bool", TypeError, "lengths must hold host ints, got True", lambda: ragged([True])),
        refusal("float", TypeError, "lengths must hold host ints, got 1.5", lambda: ragged([1.5])),
        refusal(
            "number",
            TypeError,
            "lengths must be a sequence of host ints, got int",
            lambda: ragged(3),
        ),
        refusal("more than int32", ValueError, "lengths sum to", lambda: ragged([2**31 - 1, 1])),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("lengths", [[True, True], [1.0, 1.0]])
def test_what_equals_known_lengths_but_is_no_integer_is_refused(lengths):
    """Python takes True and 1.0 for 1 when it looks something up."""
    ragged([1, 1])
    with pytest.raises(TypeError, match="lengths must hold host ints"):
        ragged(lengths)


def test_lengths_may_be_any_integers():
    lengths = Ragged.from_lengths(np.array([2, 3], dtype=np.uint8), "cpu").lengths
    assert lengths == (2, 3)
    assert {type(n) for n in lengths} == {int}


@pytest.mark.parametrize("length", [np.True_, np.float32(3), np.array(3), np.array([3])], ids=repr)
def test_what_numpy_has_beside_integers_is_refused(length):
    with pytest.raises(TypeError, match="lengths must hold host ints"):
        ragged([length])


def test_refuses_new_lengths_while_a_cuda_graph_is_captured(cuda_streams):
    """The copy would happen in replays only, and later calls would read memory never written."""
    cuda_streams.captured = True
    with pytest.raises(RuntimeError, match=r"segments of lengths \(71, 72\) are new while"):
        Ragged.from_lengths([71, 72], "cuda:0")


def test_a_cached_property_is_not_kept_while_a_cuda_graph_is_captured(cuda_streams):
    """It has no value before a replay, and its memory belongs to the graph."""
    segments = dataclasses.replace(ragged([3, 0, 2]), cu_seqlens=OnGPU())
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
