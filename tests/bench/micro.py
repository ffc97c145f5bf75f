"""Micro-benchmarks of the ops on this CPU by pytest-benchmark: `make bench`.

The first case of every op: the PyTorch fallback (what a CPU runs) beside its plain baselines; an
answer is checked before it is timed.
"""

from importlib import import_module

import pytest
import torch
from gpu import OPS
from harness import Case, Variant

torch.set_num_threads(1)


def first_case(op: str) -> Case:
    return next(import_module(f"bench_{OPS[op]}").OPS[op]("cpu", False))


VARIANTS = [
    pytest.param(op, variant, id=f"{op}: {variant.name}")
    for op in OPS
    for variant in first_case(op).variants
    if variant.role in ("vtfast", "eager", "fair")
]


@pytest.mark.parametrize(("op", "variant"), VARIANTS)
def test_op(benchmark, op: str, variant: Variant) -> None:
    case = first_case(op)
    benchmark.group = f"{op}, {case.name}"
    if variant.call is None:
        pytest.skip(variant.missing)
    inputs = case.make(0)
    with torch.no_grad():
        try:
            answer = variant.call(*inputs)
        except NotImplementedError as error:
            pytest.skip(str(error)[:100])
        assert not (variant.gate or case.gate)(inputs)(answer)
        benchmark(variant.call, *inputs)
