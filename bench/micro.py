"""Micro-benchmarks of the ops on this CPU by pytest-benchmark: `make bench`.

The first case of every op bench, the eager twin (what a CPU runs) beside its plain baselines; an
answer is checked before it is timed.
"""

from importlib import import_module

import pytest
import torch
from gpu_ops import ORDER
from harness import Case, Way

torch.set_num_threads(1)


def first_case(op: str) -> Case:
    return next(iter(import_module(f"bench_{op}").cases("cpu", False)))


WAYS = [
    pytest.param(op, way, id=f"{op}: {way.name}")
    for op in ORDER
    for way in first_case(op).ways
    if way.role in ("vtfast", "eager", "fair")
]


@pytest.mark.parametrize(("op", "way"), WAYS)
def test_op(benchmark, op: str, way: Way) -> None:
    case = first_case(op)
    benchmark.group = f"{op}, {case.name}"
    if way.call is None:
        pytest.skip(way.missing)
    inputs = case.make(0)
    with torch.no_grad():
        try:
            answer = way.call(*inputs)
        except NotImplementedError as error:
            pytest.skip(str(error)[:100])
        wrong = (way.gate or case.gate)(inputs)(answer)
        assert not wrong
        benchmark(way.call, *inputs)
