"""The cache of device tensors has entries per CUDA stream, and keeps those that graphs use."""

import gc
import re
import weakref

import pytest
import torch

from vtfast.kernels._device_cache import cached_per_stream

GPU = torch.device("cuda", 0)


class Built:
    """A stand-in for tensors on a device."""

    def __init__(self, numbers):
        self.numbers = numbers


@pytest.fixture
def fetch():
    """A cache of things that need no GPU, empty at the start of a test."""
    return cached_per_stream("numbers")(lambda numbers, device: Built(numbers))


def test_every_stream_has_its_own_entry(fetch, cuda_streams):
    """Nothing makes one stream wait for what another copies."""
    first = fetch((1, 2), GPU)
    cuda_streams.current = 7
    assert fetch((1, 2), GPU) is not first
    cuda_streams.current = 0
    assert fetch((1, 2), GPU) is first


def test_devices_without_streams_have_entries_of_their_own(fetch):
    kept = fetch((1,), torch.device("cpu"))
    assert fetch((1,), torch.device("cpu")) is kept
    assert fetch((1,), torch.device("meta")) is not kept


def test_a_capture_uses_the_entry_of_any_stream(fetch, cuda_streams):
    """It runs on a stream of its own, after the device has finished all work."""
    cuda_streams.current = 3
    warm = fetch((1, 2), GPU)
    cuda_streams.current, cuda_streams.captured = 9, True
    assert fetch((1, 2), GPU) is warm


def test_a_capture_prefers_the_entry_of_its_own_stream(fetch, cuda_streams):
    for cuda_streams.current in (3, 9, 5):
        kept = fetch((1, 2), GPU)
    cuda_streams.captured = True
    assert fetch((1, 2), GPU) is kept


def test_a_capture_refuses_what_no_stream_has(fetch, cuda_streams):
    """The refused request leaves no entry behind."""
    fetch((1, 2), GPU)
    cuda_streams.captured = True
    message = "numbers (1, 3) are new while a CUDA graph is captured, and a capture cannot copy "
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            fetch((1, 3), GPU)
    cuda_streams.captured = False
    assert fetch((1, 3), GPU).numbers == (1, 3)


def test_an_entry_used_by_a_graph_is_never_dropped(fetch, cuda_streams):
    """Replays read its memory, and nothing else may keep it alive."""
    taken, left = (weakref.ref(fetch((number,), GPU)) for number in (1, 2))
    cuda_streams.captured = True
    fetch((1,), GPU)
    cuda_streams.captured = False
    for number in range(100, 164):
        fetch((number,), GPU)
    gc.collect()
    assert taken() is not None
    assert left() is None
