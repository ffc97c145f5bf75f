"""What is kept on the device is kept for the CUDA stream it was made on, and for graphs."""

import gc
import re
import weakref

import pytest
import torch

from vtfast.kernels._device_cache import once_per_stream

GPU = torch.device("cuda", 0)


class Made:
    """Stands for tensors on a device."""

    def __init__(self, numbers):
        self.numbers = numbers


@pytest.fixture
def fetch():
    """A cache of its own, for things that need no GPU."""
    return once_per_stream("numbers")(lambda numbers, device: Made(numbers))


def test_every_stream_has_its_own(fetch, cuda_streams):
    """Nothing makes one stream wait for what another copies."""
    first = fetch((1, 2), GPU)
    cuda_streams.current = 7
    assert fetch((1, 2), GPU) is not first
    cuda_streams.current = 0
    assert fetch((1, 2), GPU) is first


def test_devices_without_streams_share_nothing_with_one_another(fetch):
    kept = fetch((1,), torch.device("cpu"))
    assert fetch((1,), torch.device("cpu")) is kept
    assert fetch((1,), torch.device("meta")) is not kept


def test_a_graph_takes_what_any_stream_has(fetch, cuda_streams):
    """It is captured on a stream of its own, after the device has done everything."""
    cuda_streams.current = 3
    warm = fetch((1, 2), GPU)
    cuda_streams.current, cuda_streams.captured = 9, True
    assert fetch((1, 2), GPU) is warm


def test_a_graph_prefers_what_its_stream_has(fetch, cuda_streams):
    for cuda_streams.current in (3, 9, 5):
        kept = fetch((1, 2), GPU)
    cuda_streams.captured = True
    assert fetch((1, 2), GPU) is kept


def test_a_graph_refuses_what_nobody_has(fetch, cuda_streams):
    """And does not leave behind that it was asked for."""
    fetch((1, 2), GPU)
    cuda_streams.captured = True
    message = "numbers (1, 3) are new while a CUDA graph is captured, which cannot copy them to "
    for _ in range(2):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            fetch((1, 3), GPU)
    cuda_streams.captured = False
    assert fetch((1, 3), GPU).numbers == (1, 3)


def test_what_a_graph_took_outlives_the_cache(fetch, cuda_streams):
    """Replays read its memory, and nobody else may hold it."""
    taken, left = (weakref.ref(fetch((number,), GPU)) for number in (1, 2))
    cuda_streams.captured = True
    fetch((1,), GPU)
    cuda_streams.captured = False
    for number in range(100, 164):
        fetch((number,), GPU)
    gc.collect()
    assert taken() is not None
    assert left() is None
