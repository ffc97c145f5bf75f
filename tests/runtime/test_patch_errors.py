"""What cannot be patched is refused with the reason and the fix, before anything changed."""

import pytest
import torch
from model_runs import FOUR_STAGES
from module_state import changes, module_state
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT, text_of
from tiny_qwen import build_qwen
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, PixtralVisionConfig

import vtfast
from vtfast import (
    AlreadyPatchedError,
    InputError,
    Plan,
    PlanError,
    Prune,
    StateError,
    UnsupportedModelError,
    VTFastError,
    errors,
)
from vtfast.kernels import _launch


def refused(model, error, match, plan=FOUR_STAGES, **options):
    """`vtfast.patch` raises `error` and leaves the model as it was."""
    before = module_state(model)
    with pytest.raises(error, match=match):
        vtfast.patch(model, plan, **options)
    assert changes(before, module_state(model)) == []
    assert not vtfast.is_patched(model)


class Wrapper(torch.nn.Module):
    """Holds models under names."""

    def __init__(self, **inner):
        super().__init__()
        for name, module in inner.items():
            setattr(self, name, module)


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_patching_twice_names_the_active_plan(family):
    model = family.build()
    with vtfast.patch(model, Plan(FOUR_STAGES, name="four stages")):
        before = module_state(model)
        with pytest.raises(AlreadyPatchedError, match="four stages") as caught:
            vtfast.patch(model)
        assert "call set(…) of its handle" in str(caught.value)
        assert "vtfast.unpatch(model)" in str(caught.value)
        assert changes(before, module_state(model)) == []
        assert vtfast.is_patched(model)


def test_the_name_of_a_model_is_no_model():
    with pytest.raises(UnsupportedModelError, match="such as 'owner/name': load the model first"):
        vtfast.patch("owner/name")


def test_an_unknown_model_is_told_which_are_supported():
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    refused(model, UnsupportedModelError, "llama.*LlavaForConditionalGeneration")
    refused(model, UnsupportedModelError, "Qwen2_5_VLForConditionalGeneration")


@pytest.mark.parametrize("thing", [None, "llava-1.5-7b", torch.nn.Linear(2, 2)], ids=str)
def test_what_is_no_model_of_transformers_is_refused(thing):
    with pytest.raises(UnsupportedModelError, match="LlavaForConditionalGeneration"):
        vtfast.patch(thing)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_model_without_its_head_is_refused(family):
    refused(family.build().model, UnsupportedModelError, "ForConditionalGeneration")


def test_a_wrapper_of_two_models_is_told_how_to_pass_each():
    policy, reference = build_llava(), build_qwen()
    wrapped = Wrapper(policy=Wrapper(module=policy), others=torch.nn.ModuleList([reference]))
    name = r"model\.policy\.module \(Llava\w+\), model\.others\[0\] \(Qwen2_5_VL\w+\)"
    refused(wrapped, UnsupportedModelError, f"Wrapper holds 2 models.*pass one of them: {name}")


def test_a_wrapper_of_two_models_is_refused_while_one_is_patched_too():
    policy = build_llava()
    wrapped = Wrapper(policy=policy, reference=build_llava())
    with vtfast.patch(policy), pytest.raises(UnsupportedModelError, match="holds 2 models"):
        vtfast.patch(wrapped)


def test_a_wrapper_of_no_model_is_told_which_are_supported():
    refused(Wrapper(model=build_llava().model), UnsupportedModelError, "cannot patch Wrapper.*Qwen")


def test_a_tower_that_is_neither_clip_nor_siglip_is_refused():
    tower = PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
    )
    refused(build_llava(vision_config=tower), UnsupportedModelError, "pixtral.*clip.*siglip")


SLIDING = [
    pytest.param(
        lambda: build_llava(text_config=MistralConfig(**TEXT, sliding_window=16)),
        id="llava-mistral",
    ),
    pytest.param(
        lambda: build_qwen(use_sliding_window=True, sliding_window=16, max_window_layers=3),
        id="qwen-from-layer-3",
    ),
]


class Elsewhere(torch.nn.Parameter):
    """Claims to be on a second GPU, as when accelerate splits a model that one GPU cannot hold."""

    device = torch.device("cuda", 1)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_language_model_on_several_devices_is_refused(family):
    model = family.build()
    norm = text_of(model).layers[4].input_layernorm
    norm.weight = Elsewhere(norm.weight)
    refused(model, UnsupportedModelError, r"several devices \(cpu, cuda:1\).*tp_plan.*device_map")


@pytest.mark.parametrize("build", SLIDING)
def test_sliding_window_layers_are_refused(build):
    refused(build(), UnsupportedModelError, "sliding")


# -- plans and options -----------------------------------------------------------------------------

LATE, LAST = Prune(6, "random", 0.5), Prune(5, "random", 0.5)
BAD_PLANS = [
    pytest.param([LATE], {}, "6 decoder layers", id="layer-out-of-range"),
    pytest.param([Prune(0, "magic", 0.5)], {}, "magic.*unknown.*random", id="unknown-method"),
    pytest.param([Prune(0, "visonzip", 0.5)], {}, "did you mean .visionzip", id="misspelt-method"),
    pytest.param("fastest", {}, "fastest.*divprune", id="unknown-preset"),
    pytest.param(Plan([LAST]), {"keep": 0.25}, "keep", id="keep-with-a-plan"),
    pytest.param([LAST], {"keep": 0.5}, "keep", id="the-default-keep-with-a-list"),
    pytest.param([LAST], {"horizon": 3}, "horizon", id="horizon-with-a-list"),
    pytest.param("divprune+random", {"horizon": 6}, "horizon|layer", id="horizon-out-of-range"),
    pytest.param("divprune+vtw", {"keep": 1.0}, "largest", id="unreachable-keep"),
    pytest.param("fastv", {"keep": 0.1}, "smallest", id="keep-too-small"),
    pytest.param([], {}, "at least one", id="no-stage"),
    pytest.param([LAST, LAST], {}, "increase", id="two-stages-at-one-layer"),
    pytest.param(None, {}, "expected", id="no-plan"),
]


@pytest.mark.parametrize(("plan", "options", "match"), BAD_PLANS)
def test_an_invalid_plan_is_refused(plan, options, match):
    refused(FAMILIES["llava"].build(), PlanError, match, plan, **options)


BAD_OPTIONS = [
    pytest.param({"path": "ragged"}, "path='ragged'.*packed", id="path"),
    pytest.param({"impl": "cuda"}, "impl='cuda'.*eager", id="impl"),
    pytest.param({"positions": "shift"}, "positions='shift'.*keep", id="positions"),
    pytest.param({"seed": 0.5}, "seed=0.5", id="seed-not-an-int"),
    pytest.param({"seed": 2**63}, "seed", id="seed-too-large"),
]


@pytest.mark.parametrize(("options", "match"), BAD_OPTIONS)
def test_an_option_out_of_its_range_is_refused(options, match):
    refused(FAMILIES["llava"].build(), VTFastError, match, **options)


def test_triton_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    refused(FAMILIES["llava"].build(), StateError, "cpu.*GPU.*eager", impl="triton")


def test_an_unknown_keyword_is_a_type_error():
    refused(FAMILIES["llava"].build(), TypeError, "layers", layers=[2])


def test_the_options_are_keyword_only():
    model = FAMILIES["llava"].build()
    with pytest.raises(TypeError, match="positional"):
        vtfast.patch(model, "divprune", 0.5)


@pytest.mark.parametrize("build", [build_llava, build_qwen])
def test_unpatching_an_unpatched_model_changes_nothing(build):
    model = build()
    before = module_state(model)
    vtfast.unpatch(model)
    assert changes(before, module_state(model)) == []


ERRORS = [
    (errors.PlanError, ValueError),
    (errors.InputError, ValueError),
    (errors.AlreadyPatchedError, RuntimeError),
    (errors.StateError, RuntimeError),
    (errors.UnsupportedModelError, TypeError),
]


@pytest.mark.parametrize(("error", "builtin"), ERRORS, ids=lambda cls: cls.__name__)
def test_every_error_is_a_vtfast_error_and_a_builtin_one(error, builtin):
    assert issubclass(error, VTFastError)
    assert issubclass(error, builtin)


# -- registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "diversity", "topk", "drop", "dart", "test-probe"])
def test_a_taken_method_name_is_refused(name):
    with pytest.raises(PlanError, match=f"{name}.*taken"):
        vtfast.register_method(name)(lambda context: None)


@pytest.mark.parametrize("name", ["", None, 3], ids=repr)
def test_a_method_name_is_a_string(name):
    with pytest.raises(PlanError, match="name"):
        vtfast.register_method(name)(lambda context: None)


@pytest.mark.parametrize("path", ["padded", "packed"])
def test_reading_scores_that_were_not_asked_for_is_refused_with_the_fix(path):
    @vtfast.register_method("test-reads-scores", scores=False, replace=True)
    def select(context):
        return context.scores

    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    reads = pytest.raises(InputError, match="register the method with scores=True")
    with (
        vtfast.patch(model, [Prune(2, "test-reads-scores", 0.5)], path=path),
        torch.no_grad(),
        reads,
    ):
        model(**inputs)
