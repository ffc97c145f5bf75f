"""The tower that vision scores come from: every kind of call, and watched only where needed."""

import gc
from copy import deepcopy

import pytest
import torch
from model_runs import both_layouts, continuation, fed, logits_of
from module_state import changes, module_state
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES
from tiny_parts import IMAGE, VIDEO, encoded
from vision_looks import seen_by_methods

import vtfast
from vtfast import InputError, Prune, UnsupportedModelError
from vtfast.models import vision_scores


@both_layouts
def test_a_later_stage_sees_the_scores_of_the_tokens_that_are_left(family, path):
    model, inputs = family.build(), family.inputs("batch")
    (first, later), report = seen_by_methods(family, model, inputs, path=path)
    scores = torch.full(inputs["input_ids"].shape, torch.nan)
    at = torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO]))
    scores[at] = torch.cat(first)
    left = [row[kept] for row, kept in zip(scores, report.kept[0], strict=True)]
    assert torch.equal(torch.cat(left), torch.cat(later))
    assert len(torch.cat(later)) < len(torch.cat(first))


def generating(family, model, inputs):
    continuation(model, inputs, steps=2)


def with_beams(family, model, inputs):
    continuation(model, inputs, steps=2, num_beams=3)


@both_layouts
def test_they_are_the_same_in_generate_which_encodes_before(family, path):
    model, inputs = family.build(), family.inputs("batch")
    expected, _ = seen_by_methods(family, model, inputs, path=path)
    got, _ = seen_by_methods(family, model, inputs, generating, path=path)
    assert all(map(torch.equal, map(torch.cat, got), map(torch.cat, expected)))


@both_layouts
def test_beams_see_those_of_their_picture(family, path):
    model, inputs = family.build(), family.inputs("single")
    (expected, _), _ = seen_by_methods(family, model, inputs, path=path)
    (got, _), _ = seen_by_methods(family, model, inputs, with_beams, path=path)
    # To rounding: transformers 5.17 encodes the pictures of every beam again.
    assert all((beam - expected[0]).abs().max() <= 1e-6 for beam in got)
    assert len(got) == 3


@pytest.mark.parametrize("run", [logits_of, generating])
def test_the_tower_is_watched_only_where_a_plan_needs_it(run):
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    hooks = lambda: [len(m._forward_pre_hooks) for m in model.model.vision_tower.modules()]  # noqa: E731
    assert not any(hooks())
    with vtfast.patch(model, "divprune"):
        assert not any(hooks())
    with vtfast.patch(model, "visionzip"):
        assert sum(hooks()) == 1
        run(family, model, inputs)
        model.model.vision_tower(inputs["pixel_values"])  # by somebody else
    assert not any(hooks())
    assert not any(waits() for waits in vision_scores._waiting.get())
    assert not vision_scores.is_encoding()


@both_layouts
def test_a_copy_is_independent_and_undoing_leaves_no_trace(family, path):
    model, inputs = family.build(), family.inputs("batch")
    continuation(model, inputs, steps=2)  # transformers adds hooks of its own in the first
    before = module_state(model)
    with vtfast.patch(model, "scope", keep=0.25, path=path) as handle:
        copied = deepcopy(model)
        expected = continuation(model, inputs, steps=4)
        handle.remove()
        assert changes(before, module_state(model)) == []
        assert torch.equal(continuation(copied, inputs, steps=4), expected)
    vtfast.unpatch(copied)
    assert not any(m._forward_pre_hooks for m in copied.modules())


@both_layouts
@torch.no_grad()
def test_pictures_that_came_as_features_alone_are_refused(family, path):
    model, inputs = family.build(), family.inputs("single")
    features = encoded(model, "image", inputs)
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    with vtfast.patch(model, "visionzip", path=path) as handle:
        with pytest.raises(InputError, match=r"'visionzip' needs .* as pixels"):
            model(**text, mm_encoder_outputs={"image": features})
        model(**fed(family, inputs))  # the model is as usable as before
        assert handle.report is not None


@pytest.mark.parametrize("name", ["visionzip", "scope", "vispruner"])
def test_a_family_whose_tower_is_not_known_is_refused_by_name(name):
    model = FAMILIES["aria"].build()
    with pytest.raises(UnsupportedModelError, match=rf"'{name}' .*AriaFor.*cdpruner.*LlavaFor"):
        vtfast.patch(model, name)
    vtfast.patch(model, "cdpruner")


@pytest.mark.parametrize("name", ["llava", "internvl", "llava-next", "mistral3"])
def test_another_layer_in_the_call_is_refused(name):
    """Scores were once those of the config's layer, without a word."""
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs("single")
    same = model.config.vision_feature_layer
    with vtfast.patch(model, "visionzip"), torch.no_grad():
        with pytest.raises(
            InputError, match=r"vision_feature_layer=-3 was given.*before the model"
        ):
            model(**fed(family, inputs), vision_feature_layer=-3)
        if name != "mistral3":  # its `generate` does not take it
            with pytest.raises(InputError, match="vision_feature_layer=-3 was given"):
                model.generate(**inputs, vision_feature_layer=-3, max_new_tokens=1)
        model(**fed(family, inputs), vision_feature_layer=same)


def alive(kind):
    gc.collect()
    return [x for x in gc.get_objects() if type(x) is kind]


@torch.no_grad()
def test_nothing_is_left_alive_by_a_forward_that_failed_or_by_its_result():
    """The call, its cache included, and queries and keys of the tower once were."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, "visionzip"):
        out = model(**fed(family, inputs))
        assert out is not None
        assert alive(vision_scores.Attended) == []
        inputs["attention_mask"][1, -20:-10] = 0  # a part of a picture
        with pytest.raises(InputError, match="hides"):
            model(**fed(family, inputs))
        del out
        assert alive(vision_scores.VisionScores) == []


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("saved", ["vision_tower", "self_attn"])
def test_the_copy_of_the_tower_that_runs_is_watched(saved):
    """PEFT keeps the original beside the copy it trains, and runs it where the adapter is off."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("single")
    (expected, _), _ = seen_by_methods(family, model, inputs)
    config = LoraConfig(
        target_modules=["down_proj"], modules_to_save=[saved], init_lora_weights=True
    )
    wrapped = get_peft_model(model, config).eval()
    (got, _), _ = seen_by_methods(family, wrapped, inputs)
    assert torch.equal(torch.cat(got), torch.cat(expected))
    with wrapped.disable_adapter():
        (got, _), _ = seen_by_methods(family, wrapped, inputs)
    assert torch.equal(torch.cat(got), torch.cat(expected))


def test_features_that_are_no_layers_output_are_refused():
    model = FAMILIES["llava"].build()
    model.config.vision_feature_layer = model.model.config.vision_feature_layer = 0
    with pytest.raises(UnsupportedModelError, match="no output of the vision tower's 3 layers"):
        vtfast.patch(model, "visionzip")
    assert not vtfast.is_patched(model)


@pytest.mark.parametrize("name", ["vision_scores", "text"])
def test_reading_what_was_not_asked_for_is_refused_with_the_fix(name):
    @vtfast.register_method("test-reads-more", scores=False, replace=True)
    def select(context):
        return getattr(context, name)

    family = FAMILIES["llava"]
    with (
        vtfast.patch(model := family.build(), [Prune(2, "test-reads-more", 0.5)]),
        pytest.raises(InputError, match=f"register the method with {name}=True"),
    ):
        logits_of(family, model, family.inputs("single"))


def test_random_numbers_of_the_tower_are_left_alone():
    """Its projections may have dropout, which a training step draws."""
    family, drawn = FAMILIES["llava"], []
    model, inputs = family.build(), family.inputs("single")
    for module in model.model.vision_tower.modules():
        if hasattr(module, "k_proj"):
            module.k_proj = torch.nn.Sequential(module.k_proj, torch.nn.Dropout(0.5))
    model.train()
    for plan in ([Prune(2, "uniform", 0.5)], [Prune(2, "visionzip", 0.5)]):
        with vtfast.patch(model, plan), torch.no_grad():
            torch.manual_seed(0)
            drawn.append(encoded(model, "image", inputs).pooler_output)
    assert torch.equal(*map(torch.cat, drawn))
