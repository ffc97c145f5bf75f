"""What a family cannot do is refused before anything runs."""

import pytest
from tiny_models import FAMILIES

import vtfast
from vtfast import Prune
from vtfast.errors import UnsupportedModelError
from vtfast.evaluation.asking import cache_bytes
from vtfast.flops import multiply_adds

PLAN = [Prune(0, "random", 0.5)]


def test_features_behind_the_last_layer_are_refused():
    with pytest.raises(UnsupportedModelError, match="behind all of its decoder layers"):
        vtfast.patch(FAMILIES["qwen3"].build(num_hidden_layers=3), PLAN)


def test_a_model_without_attention_is_refused():
    model = FAMILIES["qwen3.5"].build(layer_types=["linear_attention"] * 6)
    with pytest.raises(UnsupportedModelError, match="layers that see a part of the sequence"):
        vtfast.patch(model, PLAN)


def test_queries_scaled_by_the_positions_of_all_tokens_are_refused():
    model = FAMILIES["mistral3"].build(model_type="ministral3")
    with pytest.raises(UnsupportedModelError, match=r"Mistral Small 3\.1 and 3\.2"):
        vtfast.patch(model, PLAN)


def test_a_text_model_with_a_window_by_default_passes_the_self_check(monkeypatch):
    """Mistral's config has a window unless told otherwise; LLaVA-NeXT's text model has none."""
    monkeypatch.setenv("VTFAST_SELF_CHECK", "always")
    model = FAMILIES["llava-next"].build(model_type="mistral", sliding_window=None)
    vtfast.patch(model, PLAN).remove()


def test_the_cache_of_recurrent_layers_is_counted():
    family = FAMILIES["qwen3.5"]
    model, inputs = family.build(), family.inputs("single")
    out = model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
    cache = out.cache if "cache" in out else out.past_key_values
    held = sum(
        layer.keys.nbytes + layer.values.nbytes
        for layer in map(cache.layers.__getitem__, (1, 2, 5))
    )
    states = [
        t.nbytes
        for i in (0, 3, 4)
        for states in (cache.layers[i].conv_states, cache.layers[i].recurrent_states)
        for t in states.values()
    ]
    assert min(states) > 0
    assert cache_bytes(cache.layers) == held + sum(states)


def test_experts_count_as_wide_as_those_a_token_goes_to():
    """Two of four, 32 wide each, where the dense model's MLP has 96."""
    dense, experts = (FAMILIES[name].build().config for name in ("qwen3", "qwen3-moe"))
    assert multiply_adds(dense, [10] * 6) - multiply_adds(experts, [10] * 6) == (
        6 * 10 * 3 * 64 * (96 - 2 * 32)
    )


def test_aria_counts_chosen_and_shared_experts():
    """Two chosen and two shared, 96 wide each."""
    dense, experts = (FAMILIES[name].build().config for name in ("smolvlm", "aria"))
    assert multiply_adds(experts, [10] * 6) - multiply_adds(dense, [10] * 6) == (
        6 * 10 * 3 * 64 * (4 * 96 - 96)
    )


def test_linear_attention_counts_nothing_that_grows_with_the_square():
    config = FAMILIES["qwen3.5"].build().config
    once, twice = (multiply_adds(config, [n] * 6) for n in (100, 200))
    assert twice - 2 * once == 3 * 2 * 100 * 100 * 4 * 16  # three layers attend
