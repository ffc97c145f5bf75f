"""Session set-up, and the fixture the op tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another


@pytest.fixture
def poisoned_memory():
    """Fill what `torch.empty` and its kin return: NaN in floats, the largest value in integers.

    An output that nobody writes cannot pass for the zeros a fresh process tends to get.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
