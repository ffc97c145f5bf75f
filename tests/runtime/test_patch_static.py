"""A static cache: right, compilable, without memory gain; refused where it cannot be right."""

import pytest
import torch
from cache_name import CACHE, cache_of
from model_oracle import Oracle
from model_runs import FOUR_STAGES, continuation, fed, gone
from tiny_models import FAMILIES
from tiny_parts import Picture
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer

import vtfast
from vtfast import InputError, Prune

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
LATE = [Prune(2, "random", 0.5), Prune(4, "random", 0.2)]


def static_cache(model, length=192):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["single", "batch"])
@families
def test_tokens_are_the_oracles(family, name, attention):
    model, inputs = family.build(attention=attention), family.inputs(name)
    with vtfast.patch(model, FOUR_STAGES, path="padded", record=True) as handle:
        tokens = continuation(model, inputs, steps=10, cache_implementation="static")
    oracle = Oracle(family.build(), inputs)
    assert torch.equal(tokens, oracle.greedy(gone(inputs, handle.report.kept), 10))


@families
def test_a_plain_call_takes_one_too(family):
    """With a 2-D mask, as in decoding loops written without `generate`."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        expected = model(**fed(family, inputs), **{CACHE: DynamicCache(config=model.config)}).logits
        logits = model(**fed(family, inputs), **{CACHE: static_cache(model)}).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@families
def test_the_report_says_that_no_memory_is_saved(family):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES) as handle, torch.no_grad():
        cache = static_cache(model)
        model(**fed(family, inputs), **{CACHE: cache})
    assert "no memory is saved" in handle.report.path_reason
    attending = [layer for layer in cache.layers if hasattr(layer, "keys")]
    assert {layer.keys.shape[2] for layer in attending} == {192}


@families
def test_a_reset_cache_is_what_it_was(family):
    model, inputs = family.build(), family.inputs("single")
    cache = static_cache(model)
    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        first = model(**fed(family, inputs), **{CACHE: cache}).logits
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        cache.reset()
        assert type(cache) is StaticCache
        assert cache.get_seq_length() == 0
        assert torch.equal(model(**fed(family, inputs), **{CACHE: cache}).logits, first)


@families
def test_one_filled_in_inference_mode_is_reordered_outside(family):
    """Its length is a tensor of that mode, which nothing of ours may add to in place."""
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, LATE), torch.inference_mode():
        cache = cache_of(model(**fed(family, inputs), **{CACHE: static_cache(model)}))
        cache.reorder_cache(torch.arange(3))
    cache.reorder_cache(torch.arange(3))
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["single", "batch"])
@families
def test_a_compiled_decoding_step_is_one_graph(family, name):
    model, inputs = family.build(), family.inputs(name)
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True, dynamic=False)
    compiled._compile_all_devices = True  # transformers compiles on a CPU only when told so
    torch._dynamo.reset()
    with vtfast.patch(model, FOUR_STAGES):
        expected = continuation(model, inputs, steps=8)
        counters.clear()
        tokens = continuation(
            model, inputs, steps=8, cache_implementation="static", compile_config=compiled
        )
    assert torch.equal(tokens, expected)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@families
def test_a_later_chunk_of_text_goes_on(family):
    model, inputs = family.build(), family.inputs("single")
    text = torch.tensor([[7, 8, 9, 10]])
    prompt = inputs["input_ids"].shape[1]
    positions = Oracle(model, inputs).position_ids(prompt, prompt + 4)
    with vtfast.patch(model, FOUR_STAGES, record=True) as handle, torch.no_grad():
        cache = static_cache(model)
        model(**fed(family, inputs), **{CACHE: cache})
        kept = handle.report.kept
        logits = model(input_ids=text, position_ids=positions, **{CACHE: cache}).logits
    expected = Oracle(model, inputs).logits(gone(inputs, kept), text)[:, -4:]
    torch.testing.assert_close(logits, expected, atol=3e-4, rtol=0)


@families
def test_a_later_padded_chunk_is_refused(family):
    samples = family.samples([4, Picture(seed=1), 7], [3, Picture(seed=2), 6])
    model, inputs = family.build(), family.batch(samples)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
    mask[0, -2] = 0
    with vtfast.patch(model, LATE), torch.no_grad():
        cache = static_cache(model)
        model(**fed(family, inputs), **{CACHE: cache})
        with pytest.raises(InputError, match="padded, which a StaticCache"):
            model(input_ids=torch.full((2, 2), 7), attention_mask=mask, **{CACHE: cache})
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@families
def test_a_later_prepared_mask_is_refused(family):
    """As a second `generate` on one cache makes it: it does not say which tokens are real."""
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        cache = static_cache(model)
        model(**fed(family, inputs), **{CACHE: cache})
        prepared = torch.ones(1, 1, 4, 192, dtype=torch.bool)
        with pytest.raises(InputError, match="first chunk only"):
            model(
                input_ids=torch.tensor([[7, 8, 9, 10]]),
                attention_mask=prepared,
                **{CACHE: cache},
            )


@families
def test_the_packed_layout_refuses_a_static_cache(family):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path="packed"), torch.no_grad():
        with pytest.raises(InputError, match=r'static cache.*path="padded"'):
            model(**fed(family, inputs), **{CACHE: static_cache(model)})
        with pytest.raises(InputError, match="static cache"):
            continuation(model, inputs, cache_implementation="static")


def test_a_cache_neither_dynamic_nor_static_is_refused():
    """Each of its layers may see another part of the sequence."""
    family = FAMILIES["llava"]

    class Mine(DynamicCache):
        pass

    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, LATE), torch.no_grad():
        with pytest.raises(InputError, match=r"got Mine.*defaults"):
            model(**inputs, **{CACHE: Mine()})
        continuation(model, inputs, steps=2)  # still usable


@pytest.mark.skipif(not StaticLayer.is_croppable, reason="needs transformers 5.24 or later")
@pytest.mark.parametrize("name", ["single", "batch"])
def test_a_cropped_one_goes_on_as_if_the_tokens_had_never_been(name):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(name)
    samples = len(inputs["input_ids"])

    def logits_after(cache, *tokens, crop=0):
        """Feed one token after the other, forgetting the first `crop` of them at once."""
        mask = inputs["attention_mask"]
        for number, token in enumerate(tokens):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            positions = (mask.cumsum(1) - 1)[:, -1:]
            ids = torch.full((samples, 1), token)
            call = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            out = model(**call, **{CACHE: cache}).logits
            if number + 1 == crop:
                cache.crop(-crop)
                mask = mask[:, :-crop]
        return out

    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        caches = [static_cache(model) for _ in range(2)]
        for cache in caches:
            model(**fed(family, inputs), **{CACHE: cache})
        expected = logits_after(caches[0], 5, 6)
        assert torch.equal(logits_after(caches[1], 7, 8, 9, 5, 6, crop=3), expected)
