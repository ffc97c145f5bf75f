"""Weights sharded over processes (FSDP2, FSDP1, accelerate): trains as one process does.

Scores were once made from a layer's weights after it had run, when they were sharded again: "got
mixed torch.Tensor and DTensor". Each process has its own samples, pictures and lengths.
"""

import pytest
from two_processes import found_by_two


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_by_two("fully_sharded", tmp_path_factory.mktemp("processes"))


def errors(found, kind):
    return [(name, e) for each in found for name, e in each.items() if name.startswith(kind)]


KINDS = [
    pytest.param("step", 2 * 2 * (8 + 3), id="loss-and-gradients"),
    pytest.param("logits", 2 * 2 * 2, id="logits-in-both-layouts"),
    pytest.param("uneven", 2 * 3, id="a-process-whose-pictures-lose-nothing"),
    pytest.param("first", 2 * (4 + 2), id="losses-under-fsdp1"),
    pytest.param("accelerate", 2 * 2, id="losses-under-accelerate"),
]


@pytest.mark.parametrize(("kind", "number"), KINDS)
def test_a_sharded_model_does_what_one_process_does(found, kind, number):
    compared = errors(found, kind)
    assert len(compared) == number
    assert [(name, error) for name, error in compared if not error < 1e-5] == []


def test_attention_wrapped_apart_by_fsdp1_is_refused_in_one_line(found):
    for each in found:
        assert each["refusal"].startswith("UnsupportedModelError: attention scores need the")
        assert "\n" not in each["refusal"]
