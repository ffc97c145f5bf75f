"""The parity checks before a timing find what is wrong, and every op has one."""

from importlib import import_module

import oracles
import pytest
import torch
from gpu import OPS
from parity import (
    exactly,
    farthest_each_time,
    image_hashes,
    nearly,
    selection,
    topk_index,
)


def test_exact_checks_see_one_bit_a_shape_and_a_nan():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert exactly(x)(x.clone()) == ""
    assert exactly(x)(x.index_fill(1, torch.tensor([1]), 9.0)) == "tensor 0 differs first at (0, 1)"
    assert exactly(x)(x[0]) == "tensor 0 has shape (2,), expected (2, 2)"
    assert exactly((x, x))((x, x * torch.nan)) == "tensor 1 differs first at (0, 0)"


def test_near_checks_see_what_is_off_and_what_is_nan():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert nearly(x, 1e-3)(x.float() + 5e-4) == ""
    assert nearly(x, 1e-3)(x + 2e-3) == "off by 0.002 at worst, 0.001 is allowed"
    assert "off by nan" in nearly(x, 1e-3)(x * torch.nan)


@pytest.mark.parametrize(
    "index", [[0, 2], [0, 1, 3, 3], [1, 0, 3, 4], [0, 3, 3, 4], [-1, 0, 3, 4], [0, 1, 3, 5]]
)
def test_a_selection_must_be_complete_distinct_ascending_and_inside(index):
    check = selection([3, 2], [2, 2])
    assert check(torch.tensor([0, 2, 3, 4])) == ""
    assert check(torch.tensor(index)) != ""


def test_expected_topk_picks_break_ties_by_position():
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0, 0.0])
    assert topk_index(scores, [4, 2], [2, 1]).tolist() == [1, 2, 4]
    assert topk_index(torch.ones(5000), [5000], [40]).tolist() == list(range(40))


def test_image_hashes_are_those_of_python_integers():
    pixels = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    grids = [(1, 1, 2), (1, 7, 1)]
    words = (pixels.view(torch.int32).long() & oracles.MASK).flatten().tolist()
    alone = [oracles.image_hash(words[5 * i : 5 * i + 5]) for i in range(9)]
    assert image_hashes(pixels, None).tolist() == alone
    parts = zip((words[:10], words[10:]), grids, strict=True)
    assert image_hashes(pixels, grids).tolist() == [oracles.image_hash(*part) for part in parts]


def test_a_replay_sees_a_pick_that_is_not_the_farthest():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    check = farthest_each_time(torch.cat([x, x]), [4, 4], [3, 2])
    assert check(torch.tensor([3, 0, 2, 7, 4])) == ""
    assert check(torch.tensor([0, 3, 2, 7, 4])).startswith("segment 0: pick 0 is")
    assert check(torch.tensor([3, 0, 2, 7, 6])).startswith("segment 1: pick 1 is")
    assert check(torch.tensor([3, 0, 0, 7, 4])) == "segment 0: rows outside of it or repeated"
    assert check(torch.tensor([3, 0, 2, 7])) == "4 rows, expected 5"


def spoilt(x):
    """A copy of an answer whose last number is changed."""
    if not isinstance(x, torch.Tensor):
        return [*x[:-1], spoilt(x[-1])]
    x = x.clone()
    x.view(-1)[-1] -= 1 if not x.is_floating_point() else 0.05
    return x


@pytest.mark.parametrize("op", OPS)
def test_the_gate_of_every_op_sees_one_wrong_number(op):
    """In the answer of vtfast, which passes as it is."""
    tiny = next(iter(import_module(f"bench_{OPS[op]}").OPS[op]("cpu", True)))
    (ours,) = (variant for variant in tiny.variants if variant.role == "vtfast")
    inputs = tiny.make(0)
    check, answer = (ours.gate or tiny.gate)(inputs), ours.call(*inputs)
    assert check(answer) == ""
    assert check(spoilt(answer)) != ""
