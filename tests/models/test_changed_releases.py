"""A release of transformers that vtfast does not work with is refused, never silently wrong.

Later releases are made by hand here: classes that hand on an argument under another name, or not at
all, as transformers 5.24 did with the cache. Every one of them has to be refused by the self-check,
with the model and transformers as they were; where a hook can see it, it also raises by itself.
"""

import functools
import inspect
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from cache_name import CACHE
from model_runs import fed
from refused_release import PLAN, refused
from tiny_models import FAMILIES, build_llava
from tiny_parts import text_of

import vtfast
from vtfast import UnsupportedVersionError
from vtfast.models import gridded, llava, self_check
from vtfast.runtime import choose_layout, kv_cache, names, padded

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def layer_class(model):
    return type(text_of(model).layers[0])


def hand_under_another_name(monkeypatch, cls, old, new, *, hidden):
    """Calls of a module of this class pass `new` where they passed `old`.

    `hidden`: the forward takes any keyword argument, so its signature does not show it.
    """
    forward, call = cls.forward, cls.__call__

    def renamed_forward(self, *args, **kwargs):
        if new in kwargs:
            kwargs[old] = kwargs.pop(new)
        return forward(self, *args, **kwargs)

    def renamed_call(self, *args, **kwargs):
        if old in kwargs:
            kwargs[new] = kwargs.pop(old)
        return call(self, *args, **kwargs)

    signature = inspect.signature(forward)
    parameters = [
        p.replace(name=new) if p.name == old else p for p in signature.parameters.values()
    ]
    if not hidden:
        renamed_forward.__signature__ = signature.replace(parameters=parameters)
    monkeypatch.setattr(cls, "forward", renamed_forward)
    monkeypatch.setattr(cls, "__call__", renamed_call)


@pytest.mark.parametrize("hidden", [False, True], ids=["in-the-signature", "hidden"])
@pytest.mark.parametrize("old", [CACHE, "attention_mask", "position_embeddings"])
@families
def test_an_argument_of_the_layers_under_another_name(family, old, hidden, untested, monkeypatch):
    model = family.build()
    hand_under_another_name(monkeypatch, layer_class(model), old, f"new_{old}", hidden=hidden)
    message = refused(model)
    assert hidden or repr(old) in message


@pytest.mark.parametrize("old", ["attention_mask", "inputs_embeds", CACHE])
@families
def test_an_argument_of_the_text_model_under_another_name(family, old, untested, monkeypatch):
    model = family.build()
    cls = type(text_of(model))
    hand_under_another_name(monkeypatch, cls, old, f"new_{old}", hidden=False)
    refused(model, match=repr(old))


@families
def test_pictures_under_another_name(family, untested, monkeypatch):
    model = family.build()
    cls = type(model.model)
    hand_under_another_name(monkeypatch, cls, "pixel_values", "pictures", hidden=False)
    refused(model, match="'pixel_values'")


def drop_keywords(monkeypatch, cls, dropped):
    """Modules of this class no longer pass some keyword arguments on: they never arrive."""
    call = cls.__call__

    def forgetful(self, *args, **kwargs):
        return call(self, *args, **{k: v for k, v in kwargs.items() if k not in dropped})

    monkeypatch.setattr(cls, "__call__", forgetful)


@pytest.mark.parametrize("part", ["text", "layers", "attention"])
@families
def test_a_part_that_no_longer_gets_our_keyword_arguments(family, part, untested, monkeypatch):
    model = family.build()
    text = text_of(model)
    cls = {
        "text": type(text),
        "layers": type(text.layers[0]),
        "attention": type(text.layers[0].self_attn),
    }[part]
    drop_keywords(monkeypatch, cls, {"vtfast_state", "vtfast_visual"})
    refused(model)


@pytest.mark.parametrize("ignored", ["attention_mask", "layer_idx"])
@families
def test_a_mask_function_that_ignores_an_argument(family, ignored, untested, monkeypatch):
    make = padded.create_causal_mask
    neutral = {"attention_mask": None, "layer_idx": 0}[ignored]
    monkeypatch.setattr(
        padded, "create_causal_mask", lambda **given: make(**{**given, ignored: neutral})
    )
    refused(family.build(), match="padded layout")


@families
def test_a_mask_function_that_ignores_padding_while_decoding(family, untested, monkeypatch):
    """Only the logits of the tokens after the first one tell."""
    make = padded.create_causal_mask

    def forgetful(**given):
        if given["inputs_embeds"].shape[1] == 1:
            given["attention_mask"] = None
        return make(**given)

    monkeypatch.setattr(padded, "create_causal_mask", forgetful)
    model = family.build(attention="eager")  # SDPA is given the step's mask without asking
    with pytest.raises(UnsupportedVersionError, match=r"with a KV cache.*logits differ"):
        vtfast.patch(model, PLAN, path="padded")


def copy_rotary(monkeypatch, cls):
    """Every layer is handed a list of its own of the rotary rows."""
    call = cls.__call__

    def copying(self, *args, **kwargs):
        kwargs["position_embeddings"] = list(kwargs["position_embeddings"])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(cls, "__call__", copying)


@families
def test_layers_that_hold_copies_of_the_rotary_rows(family, untested, monkeypatch):
    """A stage rewrites one list that all layers hold."""
    model = family.build()
    copy_rotary(monkeypatch, layer_class(model))
    refused(model, match="is not handed the one list of rotary rows")


@families
def test_layers_handed_their_hidden_states_by_name(family, untested, monkeypatch):
    model = family.build()
    cls = layer_class(model)
    call = cls.__call__
    monkeypatch.setattr(
        cls, "__call__", lambda self, hidden, **kwargs: call(self, hidden_states=hidden, **kwargs)
    )
    refused(model, match="is not handed its hidden states as the first argument")


@families
def test_labels_under_another_name(family, untested, monkeypatch):
    model = family.build()
    hand_under_another_name(monkeypatch, type(model), "labels", "targets", hidden=False)
    refused(model, match="takes no argument 'labels'")


@families
def test_a_model_that_does_more_than_its_layers(family, untested, monkeypatch):
    """The expected logits are computed layer by layer, which would then be wrong."""
    model = family.build()
    cls = type(text_of(model))
    forward = cls.forward

    @functools.wraps(forward)
    def louder(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state * 2
        return out

    monkeypatch.setattr(cls, "forward", louder)
    refused(model, match="decoder layers called one by one differ from the whole model")


def test_pictures_that_are_not_found(untested, monkeypatch):
    model = build_llava()
    monkeypatch.setattr(llava.Llava, "sources", lambda self, multimodal, kwargs, needs: [])
    refused(model, match="no visual token was found")


def test_a_layout_that_is_not_taken(untested, monkeypatch):
    model = build_llava()
    monkeypatch.setattr(choose_layout, "why_always_padded", lambda *given: "because")
    refused(model, match=r"the padded layout was used \(because\)")


def test_pictures_whose_sizes_come_in_another_order(untested, monkeypatch):
    model, sources = FAMILIES["qwen"].build(), gridded.Gridded.sources

    def swapped_sizes(measure, *told):
        pictures = measure(*told)
        return replace(pictures, sizes=pictures.sizes[::-1])

    def swapped(self, multimodal, kwargs, needs):
        found = sources(self, multimodal, kwargs, needs)
        for source in found:
            source.measure = partial(swapped_sizes, source.measure)
        return found

    monkeypatch.setattr(gridded.Gridded, "sources", swapped)
    refused(model, match="picture 1 begins in sample 0 and ends in sample 1")


@families
def test_an_unpadded_mask_that_starts_elsewhere(family, untested, monkeypatch):
    """Right where transformers asks for it, before layer 0 has written, and wrong later."""
    make = padded.create_causal_mask

    def early(**given):
        cache, hidden = given[CACHE], given["inputs_embeds"]
        new = hidden.shape[1]
        if given["attention_mask"] is not None or cache is None or new == 1:
            return make(**given)
        length = cache.get_mask_sizes(new, given["layer_idx"])[0]
        seen = torch.arange(length) <= torch.arange(new)[:, None] + cache.get_seq_length()
        return seen[None, None].expand(len(hidden), 1, new, length)

    monkeypatch.setattr(padded, "create_causal_mask", early)
    refused(family.build(), match="padded layout, plain calls without padding")


@pytest.mark.parametrize("name", ["reorder_cache", "crop"])
@families
def test_caches_moved_by_another_name(family, name, untested, monkeypatch):
    """What a pruned cache overrides is not called then."""
    monkeypatch.setattr(kv_cache.PrunedCacheMixin, name, getattr(kv_cache.DynamicCache, name))
    refused(family.build(), match="is moved or cropped in a way vtfast does not know")


@families
def test_a_single_late_layer_whose_attention_loses_our_keyword(family, untested, monkeypatch):
    model = family.build()
    cls = type(text_of(model).layers[0].self_attn)
    call = cls.__call__

    def forgetful(self, *args, **kwargs):
        if self.layer_idx == 3:
            kwargs.pop("vtfast_state", None)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(cls, "__call__", forgetful)
    refused(model, match="do not pass keywords on to attention")


@families
def test_scores_computed_differently(family, untested, monkeypatch):
    """A new normalisation of the queries, say: scores read from the weights would be wrong."""
    model = family.build()
    attention = type(text_of(model).layers[0].self_attn)
    forward = attention.forward

    def normalised(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states.flip(-1), *args, **kwargs)

    monkeypatch.setattr(attention, "forward", normalised)
    refused(model, match="layer 1 attends more to tokens that were dropped")


def only_in(monkeypatch, layout):
    """Try one of the two layouts."""
    runs = self_check.runs
    monkeypatch.setattr(
        self_check,
        "runs",
        lambda batch, alone, path: runs(batch, alone, path) if path == layout else (),
    )


@pytest.mark.parametrize("functions_only", [True, False], ids=["functions", "everything"])
@pytest.mark.parametrize("only", ["padded", "packed"])
@families
def test_the_release_that_renamed_the_cache_would_have_been_refused(
    family, only, functions_only, untested, monkeypatch
):
    """vtfast before 0.2 knew one name of the cache and silently ran without one."""
    other = "past_key_values" if CACHE == "cache" else "cache"
    monkeypatch.setattr(names, "given_cache", lambda call: call.get(other))
    monkeypatch.setattr(names, "handed_cache", lambda kwargs, layer: kwargs.get(other))
    if not functions_only:
        monkeypatch.setattr(names, "CACHE", (other,))
        monkeypatch.setattr(names, "check_arguments", lambda module, *names: None)
        monkeypatch.setattr(padded.names, "cache_argument", lambda: CACHE)
    only_in(monkeypatch, only)
    refused(family.build(), match=f"{only} layout, with a KV cache")


# -- without the self-check ------------------------------------------------------------------------

MINE = {
    "subclass": lambda model: _as_mine(model, "__class__"),
    "replaced-forward": lambda model: _with_forward(text_of(model).layers[2]),
    "no-attention": lambda model: _without_attention(text_of(model).layers[4]),
}


def _as_mine(model, _):
    class Mine(type(model)):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    model.__class__ = Mine


def _with_forward(layer):
    forward = layer.forward
    layer.forward = lambda hidden_states, **kwargs: forward(hidden_states, **kwargs)


def _without_attention(layer):
    class Nothing(torch.nn.Module):
        def forward(self, hidden_states=None, **kwargs):
            return torch.zeros_like(hidden_states), None

    layer.self_attn = Nothing()


@pytest.mark.parametrize("change", MINE.values(), ids=MINE)
@pytest.mark.parametrize("path", ["padded", "packed"])
@families
def test_what_a_user_has_changed_in_a_model_is_not_taken_for_a_release(family, path, change):
    model, inputs = family.build(), family.inputs("batch")
    change(model)
    with vtfast.patch(model, PLAN, path=path), torch.no_grad():
        assert model(**fed(family, inputs), use_cache=False).logits.isfinite().all()


SILENT = {
    "cache": lambda mp, model, cls: hand_under_another_name(mp, cls, CACHE, "kv", hidden=True),
    "rotary": lambda mp, model, cls: hand_under_another_name(
        mp, cls, "position_embeddings", "phases", hidden=True
    ),
    "copies-of-rotary": lambda mp, model, cls: copy_rotary(mp, cls),
    "to-the-layers": lambda mp, model, cls: drop_keywords(mp, cls, {"vtfast_state"}),
    "to-the-text-model": lambda mp, model, cls: drop_keywords(
        mp, type(text_of(model)), {"vtfast_visual"}
    ),
    "to-attention": lambda mp, model, cls: drop_keywords(
        mp, type(text_of(model).layers[0].self_attn), {"vtfast_state"}
    ),
}


@pytest.mark.parametrize("change", SILENT.values(), ids=SILENT)
@pytest.mark.parametrize("path", ["padded", "packed"])
@families
def test_a_hook_raises_where_it_does_not_find_what_it_needs(family, path, change, monkeypatch):
    monkeypatch.setenv(self_check.VARIABLE, "never")
    model, inputs = family.build(), family.inputs("batch")
    generate = partial(model.generate, **inputs, max_new_tokens=4, do_sample=False)
    with vtfast.patch(model, PLAN, path=path):
        generate()
        change(monkeypatch, model, layer_class(model))
        with pytest.raises(UnsupportedVersionError, match=transformers.__version__):
            generate()
