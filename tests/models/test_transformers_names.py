"""Both names of the cache are understood, and what a release has lost is named at once."""

import pytest
import torch
import transformers
from cache_name import CACHE, cache_of
from model_runs import FOUR_STAGES, fed
from tiny_models import FAMILIES
from tiny_parts import TEXT
from torch import nn
from transformers import DynamicCache, LlamaConfig, masking_utils
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import vtfast
from vtfast import StateError, UnsupportedVersionError
from vtfast.runtime import names

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
spellings = pytest.mark.parametrize("name", ["cache", "past_key_values"])


@spellings
def test_a_cache_is_found_under_either_name(name):
    cache = DynamicCache()
    assert names.given_cache({name: cache}) is cache
    assert names.handed_cache({name: cache}, nn.Linear(1, 1)) is cache
    assert names.returned_cache({name: cache}) is cache


@spellings
def test_a_layer_may_be_handed_no_cache_but_by_name(name):
    assert names.given_cache({}) is None
    assert names.handed_cache({name: None}, nn.Linear(1, 1)) is None
    with pytest.raises(
        UnsupportedVersionError, match="Linear is handed no argument 'cache' or 'past"
    ):
        names.handed_cache({"kv": None}, nn.Linear(1, 1))


def test_an_output_without_a_cache_names_it():
    with pytest.raises(StateError, match="a dict without a KV cache; call it with use_cache=True"):
        names.returned_cache({"logits": 0})


@spellings
def test_the_mask_function_is_asked_what_it_calls_the_cache(name, monkeypatch):
    calls = {
        "cache": lambda config, cache: None,
        "past_key_values": lambda config, past_key_values: None,
    }
    monkeypatch.setattr(masking_utils, "create_causal_mask", calls[name])
    assert names.cache_argument() == name


def test_a_mask_function_without_a_cache_is_refused(monkeypatch):
    monkeypatch.setattr(masking_utils, "create_causal_mask", lambda config, kv: None)
    with pytest.raises(UnsupportedVersionError, match="create_causal_mask"):
        names.cache_argument()


def test_an_argument_a_module_does_not_take_is_named():
    layer = LlamaDecoderLayer(LlamaConfig(**TEXT), 0)
    names.check_arguments(layer, names.CACHE, "attention_mask")
    with pytest.raises(UnsupportedVersionError, match="LlamaDecoderLayer takes no argument 'kv'"):
        names.check_arguments(layer, "kv")
    names.check_arguments(nn.Linear(1, 1), "kv")  # not of transformers


@pytest.mark.parametrize("tested", [True, False])
def test_what_is_to_be_done_depends_on_whether_the_release_was_tested(tested, monkeypatch):
    monkeypatch.setattr(names, "TESTED", (transformers.__version__,) if tested else ("1.2.3",))
    message = str(names.unsupported("something is missing"))
    advice = "a module of this model" if tested else r"install a tested release (1.2.3)"
    assert advice in message


def test_checkpointing_takes_the_cache_away_since_5_24_only_under_gradients():
    layer, cache = nn.Linear(1, 1).train(), DynamicCache()
    layer.gradient_checkpointing = True
    assert names.handed_cache({"cache": cache}, layer) is None
    with torch.no_grad():
        assert names.handed_cache({"cache": cache}, layer) is cache
        assert names.handed_cache({"past_key_values": cache}, layer) is None
    assert names.handed_cache({"cache": cache}, layer.eval()) is cache


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.filterwarnings("ignore:.*past_key_values. is deprecated:FutureWarning")
@families
def test_a_caller_may_use_the_old_name(family, path):
    """transformers takes `past_key_values` until 5.40; a hook that sees the call sees that name."""
    model, inputs = family.build(), fed(family, family.inputs("batch"))
    with vtfast.patch(model, FOUR_STAGES, path=path), torch.no_grad():
        expected = model(**inputs, **{CACHE: DynamicCache()})
        found = model(**inputs, past_key_values=DynamicCache())
    assert torch.equal(found.logits, expected.logits)
    lengths = [[layer.get_seq_length() for layer in cache_of(o).layers] for o in (found, expected)]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@pytest.mark.skipif(CACHE != "cache", reason="transformers before 5.24 generates nonsense here")
@families
def test_generate_in_training_mode_with_checkpointing_keeps_its_cache(family, path):
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        model.gradient_checkpointing_enable()
        model.train()
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens, expected)
