"""Tensor parallelism: each process has some of the heads, and all keep the same tokens.

Scores were once made from a process's own heads, so that each kept tokens of its own.
"""

import pytest
from two_processes import found_by_two


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return found_by_two("tensor_parallel", tmp_path_factory.mktemp("processes"))


def cases(found):
    """What is compared with the whole model, of both processes."""
    out = [(name, case) for each in found for name, case in each.items() if "error" in case]
    assert len(out) == 2 * (2 * 9 * 2 + 2)
    return out


def test_every_method_has_the_logits_of_the_whole_model(found):
    assert {name: case["error"] for name, case in cases(found) if case["error"] > 1e-4} == {}


def test_every_method_keeps_the_tokens_of_the_whole_model_in_both_processes(found):
    assert [name for name, case in cases(found) if case["kept"][0] != case["kept"][1]] == []
    assert all(any(case["kept"][0]) or "vtw" in name for name, case in cases(found))


def test_generate_says_what_the_whole_model_says(found):
    generated = [case["said"] for _, case in cases(found) if case["said"][0]]
    assert len(generated) == 2 * 2 * 2 * 2
    assert all(split == whole for whole, split in generated)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_method_that_reads_attention_sees_all_heads(found, family):
    for each in found:
        read = each[f"read {family}"]
        assert all(error < 1e-4 for name, error in read.items() if "whole" in name)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_what_a_method_reads_has_equal_bits_in_both_processes(found, family):
    """So do its picks; hidden states too, which diversity selects by."""
    for each in found:
        read = each[f"read {family}"]
        assert [error for name, error in read.items() if "between" in name] == [0.0] * 3


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_gradients_are_those_of_the_whole_model(found, family):
    for each in found:
        assert max(each[f"trained {family}"].values()) < 1e-4


def test_a_key_head_split_over_processes_is_refused_in_one_line(found):
    for each in found:
        assert each["refusal"].startswith("UnsupportedModelError: attention scores need whole")
        assert "\n" not in each["refusal"]
