"""The native shorter run beside every pruned one: the same model, the same tokens, no patch."""

import pytest
import random_models
import torch
from model_runs import ATOL, fed, first_rows, probing
from native_run import NativeRun
from tiny_models import FAMILIES
from tiny_parts import IMAGE, LAYERS, Picture

import vtfast
from vtfast import Plan, Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
PLANS = [
    pytest.param([Prune(0, "test-probe", 0.3)], id="before-the-llm"),
    pytest.param([Prune(3, "test-probe", 0.3)], id="mid-depth"),
    pytest.param([Prune(0, "test-probe", 0.6), Prune(2, "test-probe", 3)], id="two-stages"),
    pytest.param([Prune(0, "test-probe", 1.0)], id="everything"),
]


def batch(family):
    """Prompts of unequal length with a picture each."""
    samples = family.samples([9, Picture(seed=1), 3], [2, Picture(seed=2), 5], [4, Picture(), 8])
    inputs = fed(family, family.batch(samples))
    return random_models.with_positions(family.build(), inputs)


@pytest.mark.parametrize("plan", PLANS)
@families
def test_the_native_shorter_run_computes_what_pruning_to_the_first_tokens_does(family, plan):
    model, inputs = family.build(), batch(family)
    run = NativeRun(model, inputs, Plan(plan), IMAGE)
    with torch.no_grad():
        native, _ = run.prefill()
        with vtfast.patch(model, plan, path="padded"), probing(first_rows):
            pruned = model(**inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(native, pruned, rtol=0, atol=ATOL)
    rows = [len(span["part"].layers) for span in run.spans]
    assert sum(rows) == LAYERS


@families
def test_pictures_are_encoded_once(family):
    model, inputs = family.build(), batch(family)
    with torch.no_grad():
        expected = model(**inputs).logits
        with random_models.encoded_once(model, inputs), pytest.MonkeyPatch.context() as patch:
            tower = getattr(model.model, "vision_tower", None) or model.model.visual
            patch.setattr(tower, "forward", None)
            assert torch.equal(model(**inputs).logits, expected)
    assert "get_image_features" not in vars(model.model)
