"""Other members of the LLaVA family, and equivalent spellings of a call."""

from inspect import signature
from itertools import takewhile

import pytest
import torch
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, fed, gone, logits_of
from tiny_models import FAMILIES, build_llava
from tiny_parts import IMAGE, TEXT, Picture, Sample
from transformers import MistralConfig, Qwen2Config, SiglipVisionConfig

import vtfast

paths = pytest.mark.parametrize("path", ["padded", "packed"])


def siglip():
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
    )


# Tokens of a picture, and how the LLaVA differs from that of the other tests.
VARIANTS = {
    "siglip": (36, lambda: {"vision_config": siglip()}, {"vision_feature_select_strategy": "full"}),
    "clip-with-its-class-token": (37, dict, {"vision_feature_select_strategy": "full"}),
    "mistral": (36, lambda: {"text_config": MistralConfig(**TEXT, sliding_window=None)}, {}),
    "qwen2": (36, lambda: {"text_config": Qwen2Config(**TEXT)}, {}),
}


def build(name, attention="sdpa"):
    _, configs, settings = VARIANTS[name]
    model = build_llava(attention=attention, **configs())
    for key, value in settings.items():
        setattr(model.config, key, value)
    return model


@pytest.mark.parametrize("name", VARIANTS)
@paths
def test_llava_variants_have_the_oracles_logits_and_tokens(name, path):
    tokens = [IMAGE] * VARIANTS[name][0]
    inputs = FAMILIES["llava"].batch(
        [
            Sample([1, 5, 6, *tokens, 7, 8, 9], [Picture(seed=1)]),
            Sample([1, *tokens, *tokens, 17, 8, 9], [Picture(seed=2), Picture(seed=3)]),
        ]
    )
    model, oracle = build(name), Oracle(build(name, attention="eager"), inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        logits = logits_of(FAMILIES["llava"], model, inputs)
        new = continuation(model, inputs, steps=8)
    assert [row[0] for row in handle.report.tokens] == [
        sum(FOUR_STAGES[0].count(n, n) for n in row) for row in ([len(tokens)], [len(tokens)] * 2)
    ]
    lost = gone(inputs, handle.report.kept)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)
    assert torch.equal(new, oracle.greedy(lost, 8))


@both_layouts
def test_arguments_by_position_are_those_by_name(family, path):
    model, inputs = family.build(), family.inputs("batch")
    by_name = fed(family, inputs)
    order = list(takewhile(by_name.__contains__, signature(model.forward).parameters))
    assert len(order) >= 2
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = model(**by_name).logits
        by_place = [by_name.pop(name) for name in order]
        assert torch.equal(model(*by_place, **by_name).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
@both_layouts
def test_a_mask_of_any_dtype_says_the_same(family, path, dtype):
    model, inputs = family.build(), family.inputs("batch")
    named = fed(family, inputs)
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = model(**named).logits
        named["attention_mask"] = named["attention_mask"].to(dtype)
        assert torch.equal(model(**named).logits, expected)
