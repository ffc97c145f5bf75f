"""The padded layout works with third-party attention functions: one that takes 4-D masks, and one
that takes 2-D masks and removes padding itself, as FlashAttention 2 does.
"""

import pytest
import torch
from cache_name import CACHE
from model_oracle import Oracle
from model_runs import ATOL, FOUR_STAGES, both_layouts, continuation, fed, gone, logits_of
from module_state import changes, module_state
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT, text_of
from transformers import AttentionInterface, AttentionMaskInterface, StableLmConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from turns import Turns

import vtfast
from vtfast import InputError, Prune, StateError

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def weighted(query, key, value, scaling, visible):
    """Plain attention of [H, q, D] on [Hkv, k, D]; visible [q, k] bool or an additive mask."""
    groups = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = query @ key.transpose(1, 2) * scaling
    if visible.dtype == torch.bool:
        visible = torch.zeros_like(scores).masked_fill(~visible, -torch.inf)
    return (scores + visible).softmax(-1) @ value


def with_4d_masks(module, query, key, value, attention_mask, scaling, **kwargs):
    """Needs its mask: without one it would not even be causal."""
    assert not any("vtfast" in name for name in kwargs)
    rows = [
        weighted(q, k, v, scaling, mask[0])
        for q, k, v, mask in zip(query, key, value, attention_mask, strict=True)
    ]
    return torch.stack(rows).transpose(1, 2), None


def mask_2d(batch_size, q_length, kv_length, attention_mask=None, **kwargs):
    """What FlashAttention 2 gets: the keys that are real, None when all are."""
    if attention_mask is None:
        return None
    assert attention_mask.shape == (batch_size, kv_length)
    return None if attention_mask.all() else attention_mask


def without_padding(
    module, query, key, value, attention_mask, scaling, position_ids=None, **kwargs
):
    """Causal attention over the real keys of each sample; the last q of them are the queries."""
    assert not any("vtfast" in name for name in kwargs)
    out, length = torch.zeros_like(query), query.shape[2]
    if position_ids is not None:  # FlashAttention 2 takes gaps in them for several sequences
        assert position_ids.shape[-1] == length
        assert len(query) > 1 or (position_ids.diff() == 1).all()
    for row, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        real = torch.ones(k.shape[1], dtype=torch.bool)
        if attention_mask is not None:
            real = attention_mask[row].bool()
        queries = real[-length:]
        n, total = int(queries.sum()), int(real.sum())
        causal = torch.ones(n, total, dtype=torch.bool).tril(total - n)
        out[row][:, queries] = weighted(q[:, queries], k[:, real], v[:, real], scaling, causal)
    return out.transpose(1, 2), None


FUNCTIONS = {
    "test-4d-masks": (with_4d_masks, eager_mask),
    "test-2d-masks": (without_padding, mask_2d),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def registered():
    """Both functions are known to transformers within a test."""
    for name, (attend, mask) in FUNCTIONS.items():
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask)
    yield
    for name in FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name)


def build(family, name):
    """The language model uses the function; the vision tower, which is not causal, does not."""
    model = family.build()
    text_of(model).set_attn_implementation(name)
    return model


def check(family, name, inputs):
    model = build(family, name)
    with vtfast.patch(model, FOUR_STAGES, path="padded", record=True) as handle:
        logits = logits_of(family, model, inputs)
        tokens = continuation(model, inputs)
    oracle = Oracle(family.build(attention="eager"), inputs)
    lost = gone(inputs, handle.report.kept)
    alive = oracle.survivors(lost)
    torch.testing.assert_close(logits[alive], oracle.logits(lost)[alive], rtol=0, atol=ATOL)
    assert torch.equal(tokens, oracle.greedy(lost, 20))


@functions
@families
def test_unpatched_they_compute_what_sdpa_computes(family, name):
    """The functions of this file are right, so that what follows says something about vtfast."""
    inputs, plain = family.inputs("batch"), family.build()
    real = inputs["attention_mask"].bool()
    got = logits_of(family, build(family, name), inputs)
    expected = logits_of(family, plain, inputs)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=ATOL)


@functions
@families
def test_a_padded_batch_has_the_oracles_logits_and_tokens(family, name):
    check(family, name, family.inputs("batch"))


@functions
@families
def test_a_single_sample_has_the_oracles_logits_and_tokens(family, name):
    """No padding, so no mask: positions are what FlashAttention 2 would read gaps from."""
    check(family, name, family.inputs("single"))


@functions
@families
def test_turns_on_one_cache_are_the_oracles(family, name):
    pictures = family.named("single")[0].pictures
    model = build(family, name)
    with vtfast.patch(model, FOUR_STAGES, path="padded", record=True) as handle:
        turns = Turns(family, model, handle, rows=2)
        turns.say([4, *pictures, 7], [3])
        turns.step(3)
        turns.crop(2)
        turns.step(1)
        turns.say([2], [3, *pictures, 5])
        turns.step(2)
        turns.check()


@functions
def test_auto_takes_the_padded_layout_and_names_the_attention(name):
    family = FAMILIES["llava"]
    model = build(family, name)
    with vtfast.patch(model, FOUR_STAGES) as handle:
        logits_of(family, model, family.inputs("single"))
    assert handle.report.path == "padded"
    assert name in handle.report.path_reason


@functions
@families
def test_the_packed_layout_refuses_them_with_the_fix(family, name):
    model = build(family, name)
    before = module_state(model)
    with pytest.raises(InputError, match=rf"packed.*{name}.*path=\"padded\".*sdpa"):
        vtfast.patch(model, FOUR_STAGES, path="packed")
    assert changes(before, module_state(model)) == []


@functions
@families
def test_undo_leaves_them_in_place(family, name):
    model, inputs = build(family, name), family.inputs("batch")
    expected = logits_of(family, model, inputs)
    before = module_state(model)
    with vtfast.patch(model, FOUR_STAGES):
        logits_of(family, model, inputs)
    assert changes(before, module_state(model)) == []
    assert torch.equal(logits_of(family, model, inputs), expected)


class Own(torch.nn.Module):
    """A user's attention in place of transformers': SDPA with the mask it is handed."""

    def __init__(self, attends):
        super().__init__()
        self.attends = attends

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        given, names = self.attends, ("q_proj", "k_proj", "v_proj")
        shape = (*hidden_states.shape[:-1], -1, given.head_dim)
        q, k, v = (getattr(given, n)(hidden_states).view(shape).transpose(1, 2) for n in names)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        cache = kwargs.get(CACHE)
        if cache is not None:
            k, v = cache.update(k, v, given.layer_idx)
        causal = attention_mask is None and q.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attention_mask, is_causal=causal, scale=given.scaling, enable_gqa=True
        )
        return given.o_proj(out.transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("name", ["single", "batch"])
@pytest.mark.parametrize("path", ["padded", "auto"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_users_own_attention_gets_the_masks_of_its_layers(name, path, layer):
    """It does not ask transformers which function to call, so it never meets ours."""
    family, said = FAMILIES["llava"], []
    inputs = family.inputs(name)
    for own in (False, True):
        model = family.build()
        for block in text_of(model).layers if own else ():
            block.self_attn = Own(block.self_attn)
        with vtfast.patch(model, [Prune(layer, "random", 0.5)], path=path) as handle:
            logits = logits_of(family, model, inputs)
            said.append((logits[:, -1], continuation(model, inputs, steps=4)))
    assert handle.report.path == "padded"
    torch.testing.assert_close(said[1][0], said[0][0], rtol=0, atol=ATOL)
    assert torch.equal(said[1][1], said[0][1])


def test_layers_of_transformers_that_keep_our_keywords_to_themselves_run_padded():
    """StableLM's do not hand them to their attention."""
    family, logits, reasons = FAMILIES["llava"], [], []
    model = build_llava(torch.float32, text_config=StableLmConfig(**TEXT))
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with vtfast.patch(model, [Prune(2, "random", 0.5)]) as handle:
            logits.append(logits_of(family, model, family.inputs("batch"))[:, -1])
        reasons.append(handle.report.path_reason)
    assert "is not called as transformers' own" in reasons[0]
    torch.testing.assert_close(*logits, rtol=0, atol=ATOL)


@both_layouts
def test_setting_one_while_patched_is_refused_with_the_fix(family, path):
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, FOUR_STAGES, path=path):
        text_of(model).set_attn_implementation("test-4d-masks")
        with pytest.raises(StateError, match=r"test-4d-masks.*vtfast.unpatch\(model\).*again"):
            model(**fed(family, inputs))
    text_of(model).set_attn_implementation("sdpa")


@both_layouts
def test_a_model_whose_attention_was_set_while_patched_keeps_it_when_unpatched(family, path):
    """Undo takes back what vtfast set, not what the caller has set since."""
    model = family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        model.set_attn_implementation("eager")
    assert text_of(model).config._attn_implementation == "eager"
