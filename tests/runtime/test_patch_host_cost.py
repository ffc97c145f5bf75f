"""What a patch costs the host, counted: operators, calls of Python functions, launches, checks.

In Hugging Face's models a step at small batches waits for the host, on a GPU too. Counts do not
depend on the machine, so a regression shows here without a clock; `bench_host.py` measures.
"""

import sys
from collections import Counter

import pytest
import torch
from tiny_models import FAMILIES, LAYERS
from torch.utils._python_dispatch import TorchDispatchMode

import vtfast
from vtfast import Prune
from vtfast.runtime.names import cache_argument, returned_cache

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ONE_STAGE = [Prune(0, "uniform", 0.5)]


class Operators(TorchDispatchMode):
    """Counts dispatched operators, those that make views too."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(call):
    """Operators that a call dispatches, and Python functions that it calls."""
    calls = Counter()
    with Operators() as operators:
        call()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        call()
    finally:
        sys.setprofile(None)
    return operators.count, calls["call"]


def step_of(model, inputs):
    """A function that decodes one more token; the prompt and two tokens have been run."""
    with torch.no_grad():
        cache = returned_cache(model(**inputs, use_cache=True))
    token, mask = inputs["input_ids"][:, -1:] * 0 + 5, [inputs["attention_mask"]]
    padded = not mask[0].all()

    def step():
        mask[0] = torch.nn.functional.pad(mask[0], (0, 1), value=1)
        given = {"attention_mask": mask[0]} if padded else {}
        model(input_ids=token, **given, **{cache_argument(): cache})

    for _ in range(2):
        step()
    return step


def cost_of_a_step(family, inputs, plan, **how):
    """Operators and calls of a decoding step."""
    model = family.build()
    if how:
        vtfast.patch(model, plan, **how)
    with torch.inference_mode():
        return counted(step_of(model, inputs))


@families
@pytest.mark.parametrize(
    ("how", "operators", "calls"),
    [
        # Before layers without a stage lost their hooks: 1.2 operators, 12 and more calls a layer.
        pytest.param({"path": "auto"}, 0, 1, id="auto"),
        pytest.param({"path": "packed", "impl": "eager"}, 5, 4, id="packed"),
    ],
)
def test_a_step_at_batch_1_adds_few_operators_and_calls_a_layer(family, how, operators, calls):
    """Beside those, a step has a fixed number: of the hooks on the models and on stages."""
    inputs = family.inputs("single")
    stock = cost_of_a_step(family, inputs, ONE_STAGE)
    patched = cost_of_a_step(family, inputs, ONE_STAGE, **how)
    added = [(p - s) for p, s in zip(patched, stock, strict=True)]
    print(how, added)
    assert added[0] <= operators * LAYERS + 2
    assert added[1] <= calls * LAYERS + 100
