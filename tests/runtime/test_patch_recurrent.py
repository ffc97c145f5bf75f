"""Models some of whose layers keep a recurrent state in place of keys and values."""

import pytest
from cache_name import CACHE
from model_oracle import Oracle
from model_runs import continuation, gone
from tiny_models import FAMILIES
from transformers import DynamicCache

import vtfast
from vtfast import Prune
from vtfast.errors import InputError, PlanError

FAMILY = FAMILIES["qwen3.5"]


def test_a_stage_before_the_first_layer_that_attends_has_the_oracles_tokens():
    """How many tokens the cache has seen follows from how many that layer has lost."""
    model, inputs = FAMILY.build(), FAMILY.inputs("batch")
    plan = [Prune(0, "diversity", 0.7), Prune(1, "random", 0.3)]
    cache = DynamicCache(config=model.config)
    with vtfast.patch(model, plan, record=True) as handle:
        tokens = continuation(model, inputs, steps=8, **{CACHE: cache})
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 7
    oracle = Oracle(FAMILY.build(attention="eager"), inputs)
    assert handle.report.path == "padded"
    assert (tokens == oracle.greedy(gone(inputs, handle.report.kept), 8)).all()


def test_the_packed_layout_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r'the model has recurrent layers; pass path="padded"'):
        vtfast.patch(FAMILY.build(), [Prune(0, "random", 0.5)], path="packed")


def test_scores_of_a_recurrent_layer_are_refused_with_the_layers_that_have_some():
    with pytest.raises(PlanError, match=r"layer 3 is recurrent.*those with scores are 1, 2, 5\."):
        vtfast.patch(FAMILY.build(), [Prune(4, "topk", 0.5)])
