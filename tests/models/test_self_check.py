"""A release of transformers that vtfast does not work with is refused, never silently wrong.

Later releases are made by hand here: classes that hand on an argument under another name, or not at
all, as transformers 5.24 did with the cache. Every one of them has to be refused by the self-check,
with the model and transformers as they were; where a hook can see it, it also raises by itself.
"""

import functools
import inspect
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from cache_name import CACHE
from model_runs import fed
from module_state import changes, module_state
from repository import ROOT
from tiny_models import FAMILIES, TEXT, build_llava
from transformers import MistralConfig, Qwen2Config, SiglipVisionConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

import vtfast
from vtfast import InputError, Prune, UnsupportedVersionError
from vtfast.models import llava, qwen_vl, self_check
from vtfast.runtime import hooks, kv_cache, names, padded

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
PLAN = [Prune(0, "diversity", 0.5), Prune(3, "random", 0.25)]
LAYERS = {
    "llava": modeling_llama.LlamaDecoderLayer,
    "qwen": modeling_qwen2_5_vl.Qwen2_5_VLDecoderLayer,
}


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """Every test is a process that has checked nothing yet."""
    monkeypatch.setattr(self_check, "_passed", set())
    monkeypatch.delenv(self_check.VARIABLE, raising=False)


@pytest.fixture
def untested(monkeypatch):
    """The release installed counts as one vtfast was never tested with."""
    monkeypatch.setattr(self_check, "TESTED", ("1.2.3", "4.5.6"))


def registered():
    return list(ALL_ATTENTION_FUNCTIONS), list(ALL_MASK_ATTENTION_FUNCTIONS)


def refused(model, match=None):
    """`vtfast.patch` refuses this release in both layouts and leaves everything as it was."""
    before, registries = module_state(model), registered()
    for path in ("padded", "packed"):
        with pytest.raises(UnsupportedVersionError, match=match) as caught:
            vtfast.patch(model, PLAN, path=path)
        assert transformers.__version__ in str(caught.value)
    assert changes(before, module_state(model)) == []
    assert registered() == registries
    return str(caught.value)


# -- when ------------------------------------------------------------------------------------------


def test_the_releases_pinned_are_tested_ones():
    for name in ("constraints.txt", "constraints-oldest.txt"):
        lines = (ROOT / name).read_text().splitlines()
        (pinned,) = (line.partition("==")[2] for line in lines if line.startswith("transformers=="))
        assert pinned in self_check.TESTED


@families
def test_a_tested_release_is_trusted(family, monkeypatch):
    monkeypatch.setattr(self_check, "TESTED", (transformers.__version__,))
    monkeypatch.setattr(self_check, "self_check", None)
    vtfast.patch(family.build(), PLAN)


@families
def test_another_release_is_checked_once_for_a_kind_of_model(family, untested, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    for _ in range(2):
        vtfast.patch(family.build(), PLAN)
    (record,) = (r for r in caplog.records if r.name == "vtfast")
    assert record.levelname == "INFO"
    assert record.getMessage().startswith(
        f"self-check of {type(family.build()).__name__} on transformers {transformers.__version__}"
    )


def test_another_text_model_in_the_same_class_is_another_kind(untested, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    for config in (None, MistralConfig(**TEXT, sliding_window=None), Qwen2Config(**TEXT)):
        vtfast.patch(build_llava(text_config=config), PLAN)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    tower |= {"num_attention_heads": 4, "image_size": 48, "patch_size": 8}
    vtfast.patch(build_llava(vision_config=SiglipVisionConfig(**tower)), PLAN)
    assert len(caplog.records) == 4


def test_always_checks_a_tested_release_too(monkeypatch):
    monkeypatch.setenv(self_check.VARIABLE, "always")
    monkeypatch.setattr(self_check, "TESTED", (transformers.__version__,))
    checked = []
    monkeypatch.setattr(self_check, "self_check", lambda *args: checked.append(args))
    vtfast.patch(build_llava(), PLAN)
    assert len(checked) == 1


def test_never_checks_nothing(monkeypatch, untested):
    monkeypatch.setenv(self_check.VARIABLE, "never")
    monkeypatch.setattr(self_check, "self_check", None)
    vtfast.patch(build_llava(), PLAN)


def test_any_other_value_is_refused(monkeypatch):
    monkeypatch.setenv(self_check.VARIABLE, "sometimes")
    with pytest.raises(InputError, match="'sometimes'; set it to 'always', 'auto' or 'never'"):
        vtfast.patch(build_llava(), PLAN)


@families
def test_every_kind_of_run_is_tried_in_both_layouts(family, untested, monkeypatch):
    tried, runs = [], self_check._runs

    def noted(batch, alone, path):
        for name, run in runs(batch, alone, path):
            tried.append((path, name))
            yield name, run

    monkeypatch.setattr(self_check, "_runs", noted)
    vtfast.patch(family.build(), PLAN)
    kinds = ("with a KV cache and scores", "with a KV cache", "without a KV cache")
    kinds += ("plain calls without padding", "beams", "drafts")
    assert tried == [(path, kind) for path in ("padded", "packed") for kind in kinds]


def test_every_generation_has_the_cache_its_name_says(untested, monkeypatch):
    model, seen = build_llava(), []
    generate = self_check._Trial._generate

    def noted(trial, inputs, new, **how):
        seen.append((how.get("use_cache", True), how.get("num_beams", 1)))
        return generate(trial, inputs, new, **how)

    monkeypatch.setattr(self_check._Trial, "_generate", noted)
    vtfast.patch(model, PLAN)
    assert {(False, 1), (True, 1), (True, 2), (False, 2)} <= set(seen)


def test_eager_attention_is_a_kind_of_its_own_and_is_run(untested, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="vtfast")
    used, generate = set(), self_check._Trial._generate

    def noted(trial, *args, **how):
        used.add(trial.parts.text.config._attn_implementation)
        return generate(trial, *args, **how)

    monkeypatch.setattr(self_check._Trial, "_generate", noted)
    vtfast.patch(build_llava(attention="eager"), PLAN)
    assert "eager" in used
    vtfast.patch(build_llava(), PLAN)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_a_text_model_never_tested_with_is_tried_packed_only_where_it_would_run_so(
    path, untested, monkeypatch
):
    monkeypatch.setattr(self_check, "TESTED_TEXT_MODELS", ("qwen2",))
    tried, runs = [], self_check._runs
    monkeypatch.setattr(
        self_check,
        "_runs",
        lambda batch, alone, path: tried.append(path) or runs(batch, alone, path),
    )
    vtfast.patch(build_llava(), PLAN, path=path)
    assert tried == (["padded", "packed"] if path == "packed" else ["padded"])


def test_where_the_tiny_model_cannot_run_it_says_how_to_go_on(untested, monkeypatch):
    def fails(*args):
        raise ImportError("no such thing here")

    model = build_llava()
    monkeypatch.setattr(self_check, "_tiny_model", fails)
    message = refused(model, match="could not be checked here.*no such thing here")
    assert "VTFAST_SELF_CHECK=never" in message


def test_information_is_measured_on_a_checked_release_only(untested, monkeypatch):
    def fails(*args):
        raise UnsupportedVersionError("checked")

    monkeypatch.setattr(self_check, "self_check", fails)
    family = FAMILIES["llava"]
    with pytest.raises(UnsupportedVersionError, match="checked"):
        vtfast.information.score(family.build(), family.inputs("single"), [5], progress=False)


# -- where -----------------------------------------------------------------------------------------

PLACES = {
    "bfloat16-by-default": lambda: _default_dtype(torch.bfloat16),
    "meta-by-default": lambda: torch.device("meta"),
    "inference-mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
}


class _default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        assert torch.get_default_dtype() == self.dtype
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@families
def test_it_works_anywhere_and_leaves_no_trace(family, place, untested):
    model = family.build()
    before, registries = module_state(model), registered()
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    with place():
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        device = torch.empty(0).device
        vtfast.patch(model, PLAN, path="padded").remove()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == flags
        assert torch.empty(0).device == device
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert changes(before, module_state(model)) == []
    assert registered() == registries
    assert len(self_check._passed) == 1


def test_other_processes_of_a_job_need_not_take_part(tmp_path: Path):
    """One process of two checks, while the other only waits for it to be done."""
    code = f"""
import datetime, sys, torch.distributed as dist
sys.path.insert(0, {str(ROOT / "tests" / "helpers")!r})
import vtfast
from tiny_models import FAMILIES
rank = int(sys.argv[1])
store = "file://{tmp_path}/store"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=300))
if rank == 0:
    for family in FAMILIES.values():
        vtfast.patch(family.build(), "divprune", keep=0.5)
dist.barrier()
print("done")
"""
    environment = {**os.environ, self_check.VARIABLE: "always", "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [job.communicate(timeout=300)[0] for job in jobs] == ["done\n"] * 2
    finally:
        for job in jobs:
            job.kill()


def test_a_packed_model_keeps_its_attention_when_another_is_checked(untested):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    with vtfast.patch(model, PLAN, path="packed"):
        expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        vtfast.patch(FAMILIES["qwen"].build(), PLAN, path="padded")
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), expected)


# -- releases made by hand -------------------------------------------------------------------------


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
    hand_under_another_name(monkeypatch, LAYERS[family.name], old, f"new_{old}", hidden=hidden)
    message = refused(model)
    assert hidden or repr(old) in message


@pytest.mark.parametrize("old", ["attention_mask", "inputs_embeds", CACHE])
@families
def test_an_argument_of_the_text_model_under_another_name(family, old, untested, monkeypatch):
    model = family.build()
    cls = type(model.model.language_model)
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
    text = model.model.language_model
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
    refused(family.build(), match="padded layout, with a KV cache.*logits differ")


def copy_rotary(monkeypatch, cls):
    """Every layer is handed a list of its own of the rotary rows."""
    call = cls.__call__

    def copying(self, *args, **kwargs):
        kwargs["position_embeddings"] = list(kwargs["position_embeddings"])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(cls, "__call__", copying)


@families
def test_layers_that_hold_copies_of_the_rotary_rows(family, untested, monkeypatch):
    """The packed layout rewrites one list that all layers hold."""
    copy_rotary(monkeypatch, LAYERS[family.name])
    refused(family.build(), match="packed layout.*rotary rows")


@families
def test_layers_handed_their_hidden_states_by_name(family, untested, monkeypatch):
    model, cls = family.build(), LAYERS[family.name]
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
    cls = type(model.model.language_model)
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
    monkeypatch.setattr(llava.Llava, "sources", lambda self, multimodal, kwargs: [])
    refused(model, match="no visual token was found")


def test_a_layout_that_is_not_taken(untested, monkeypatch):
    model = build_llava()
    monkeypatch.setattr(hooks.PatchHooks, "_why_always_padded", lambda self, config: "because")
    refused(model, match=r"the padded layout was used \(because\)")


def test_pictures_whose_sizes_come_in_another_order(untested, monkeypatch):
    model, sources = FAMILIES["qwen"].build(), qwen_vl.Qwen25VL.sources

    def swapped(self, multimodal, kwargs):
        found = sources(self, multimodal, kwargs)
        for source in found:
            source.sizes = (
                source.sizes.flip(0) if torch.is_tensor(source.sizes) else source.sizes[::-1]
            )
        return found

    monkeypatch.setattr(qwen_vl.Qwen25VL, "sources", swapped)
    refused(model, match="of picture")


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
    cls = type(model.model.language_model.layers[0].self_attn)
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
    attention = type(model.model.language_model.layers[0].self_attn)
    forward = attention.forward

    def normalised(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states.flip(-1), *args, **kwargs)

    monkeypatch.setattr(attention, "forward", normalised)
    refused(model, match="layer 1 attends more to tokens that were dropped")


def only_in(monkeypatch, layout):
    """Try one of the two layouts."""
    runs = self_check._runs
    monkeypatch.setattr(
        self_check,
        "_runs",
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
    "replaced-forward": lambda model: _with_forward(model.model.language_model.layers[2]),
    "no-attention": lambda model: _without_attention(model.model.language_model.layers[4]),
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
        mp, type(model.model.language_model), {"vtfast_visual"}
    ),
    "to-attention": lambda mp, model, cls: drop_keywords(
        mp, type(model.model.language_model.layers[0].self_attn), {"vtfast_state"}
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
        expected = generate()
        change(monkeypatch, model, LAYERS[family.name])
        needed_in_packed = SILENT["to-attention"], SILENT["copies-of-rotary"]
        if path == "padded" and change in needed_in_packed:
            assert torch.equal(generate(), expected)
            return
        with pytest.raises(UnsupportedVersionError, match=transformers.__version__):
            generate()
