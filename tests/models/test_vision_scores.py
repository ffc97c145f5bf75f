"""`ctx.vision_scores`: attention of visual tokens in the vision tower, in every kind of call."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from model_runs import both_layouts, continuation, fed, logits_of
from module_state import changes, module_state
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES
from tiny_parts import IMAGE, VIDEO, Picture, encoded

import vtfast
from vtfast import InputError, Prune, UnsupportedModelError
from vtfast.models import SUPPORTED, knows_tower, vision_scores

NAMES = ["llava", "qwen2", "qwen", "qwen3", "qwen3-moe", "qwen3.5", "qwen3.5-moe", "internvl"]
NAMES += ["llava-next", "llava-onevision", "mistral3", "smolvlm", "idefics3", "glm4v", "glm46v"]
CLASS_TOKEN = ("llava", "internvl", "llava-next")
PLAN = [Prune(0, "test-vision", 0.5), Prune(3, "test-vision", 0.25)]
_seen = []


@vtfast.register_method("test-vision", scores=False, vision_scores=True)
def _look(context):
    _seen.append(context.vision_scores.split(context.segments.lengths))
    return vtfast.ops.topk_select(context.vision_scores, context.segments, context.keep)


def seen_by_methods(family, model, inputs, run=logits_of, plan=PLAN, **how):
    """The vision scores that methods see in every stage, of each picture, and a report."""
    _seen.clear()
    with vtfast.patch(model, plan, record=True, **how) as handle:
        run(family, model, inputs)
    return _seen.copy(), handle.report


@contextmanager
def eager_maps(model) -> Iterator[list[tuple[torch.nn.Module, torch.Tensor]]]:
    """Modules that attend and their maps [samples, H, n, n], as the eager tower makes them."""
    maps, changed = [], {}
    for module in model.modules():
        modeling = sys.modules[type(module).__module__]
        eager = getattr(modeling, "eager_attention_forward", None)
        if eager is None or modeling in changed:
            continue

        def recording(module, *args, eager=eager, **kwargs):
            out, weights = eager(module, *args, **kwargs)
            maps.append((module, weights))
            return out, weights

        changed[modeling] = eager
        modeling.eager_attention_forward = recording
    try:
        yield maps
    finally:
        for modeling, eager in changed.items():
            modeling.eager_attention_forward = eager


def squares(scores, rows, columns):
    """Means of 2 x 2 neighbouring patches, in reading order."""
    return [
        sum(float(scores[(r + a) * columns + c + b]) for a in (0, 1) for b in (0, 1)) / 4
        for r in range(0, rows, 2)
        for c in range(0, columns, 2)
    ]


def by_plain_loops(family, model, inputs):
    """The score of every feature, from the maps of an eager tower."""
    inner, rows = model.model, []
    towers = ("visual", "vision_tower", "vision_model")
    tower = next(getattr(inner, name) for name in towers if hasattr(inner, name))
    projector = getattr(inner, "multi_modal_projector", None) or getattr(inner, "connector", None)
    projector = projector or tower.merger
    model.set_attn_implementation("eager")
    with (
        torch.no_grad(),
        eager_maps(tower) as maps,
        projector.register_forward_hook(lambda *x: rows.append(x[2])),
    ):
        features = encoded(model, "image", inputs).pooler_output
    model.set_attn_implementation("sdpa")
    layers = list(dict.fromkeys(module for module, _ in maps))
    layer = layers[-1]
    if family.name in ("llava", "llava-next"):  # whose features are the output of the last but one
        layer = layers[-2]
    of_patches = []  # of every frame or tile, as far as patches see one another
    for module, weights in maps:
        if module is layer:
            mean = weights.double().mean(1)
            got = mean[:, 0, 1:] if family.name in CLASS_TOKEN else mean.mean(1)
            of_patches += list(got)
    if family.name in ("internvl", "smolvlm", "idefics3"):
        of_rows = [x for tile in of_patches for x in squares(tile, 12, 12)]
    elif family.name == "mistral3":  # one map of all pictures, which see only themselves
        [joined], of_rows = of_patches, []
        sides = (inputs["image_sizes"] // 4).tolist()
        for part, (h, w) in zip(joined.split([h * w for h, w in sides]), sides, strict=True):
            of_rows += squares(part * len(joined) / (h * w), h, w)
    elif family.any_size:
        of_rows = torch.cat(of_patches).view(-1, 4).mean(1).tolist()
    else:
        of_rows = torch.cat(of_patches).tolist()
    made = {tuple(r.tolist()): n for r, n in zip(rows[-1].flatten(0, -2), of_rows, strict=True)}
    scores = [[made.get(tuple(f.tolist()), 0.0) for f in picture] for picture in features]
    return [torch.tensor(x, dtype=torch.float64) for x in scores]


def close(got, expected):
    got, expected = torch.cat(got).double(), torch.cat(expected)
    assert expected.std() > 0.05 * expected.mean()  # or nothing would be compared
    assert (got - expected).abs().max() <= 1e-6
    assert ((got - expected).abs() <= 1e-5 * expected.abs()).all()


def test_families_that_have_them_are_tested():
    classes = {type(FAMILIES[name].build()).__name__ for name in NAMES}
    assert classes == set(filter(knows_tower, SUPPORTED))


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_attention_of_the_eager_tower(name):
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs("batch")
    expected = by_plain_loops(family, model, inputs)
    (first, _), _ = seen_by_methods(family, model, inputs)
    close(first, expected)


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


@pytest.mark.parametrize("name", ["llava", "qwen", "internvl", "llava-next", "mistral3", "smolvlm"])
def test_a_picture_has_the_same_in_any_batch(name):
    """To the rounding of its tower, which encodes pictures together."""
    family = FAMILIES[name]
    model, samples = family.build(), family.named("batch")
    (together, _), _ = seen_by_methods(family, model, family.batch(samples))
    alone = [seen_by_methods(family, model, family.batch([s]))[0][0] for s in samples if s.pictures]
    alone = torch.cat([picture for call in alone for picture in call])
    assert (torch.cat(together) - alone).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["qwen", "qwen3", "glm4v", "llava-onevision"])
def test_patches_of_a_clip_get_attention_within_their_frame(name):
    """Every frame shares out as much as any other: its mean is one over its patches."""
    family = FAMILIES[name]
    inputs = family.batch(family.samples([3, Picture((4, 12, 12), seed=1, video=True), 5]))
    (first, _), _ = seen_by_methods(family, family.build(), inputs)
    frames = torch.cat(first)
    if family.any_size:
        assert torch.allclose(frames.view(4, -1).mean(1), torch.tensor(1 / 144))
    else:
        assert frames[-1] == 0  # the token at the end of a clip is no patch
        frames = frames[:-1]
    assert frames.std() > 0


def test_a_picture_that_is_masked_out_has_none():
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs("batch")
    (all_three, _), _ = seen_by_methods(family, model, inputs)
    inputs["attention_mask"][1] = 0
    inputs["attention_mask"][1, -2:] = 1
    (two, _), _ = seen_by_methods(family, model, inputs)
    assert torch.equal(torch.cat(two), torch.cat(all_three[1:]))


def test_patches_that_pad_a_tile_are_not_seen():
    """A picture may fill no whole tile; its mask hides the rest from the tower."""
    family = FAMILIES["smolvlm"]
    model, inputs = family.build(), family.inputs("single")
    seen = torch.ones(*inputs["pixel_values"].shape[:2], *inputs["pixel_values"].shape[3:]).bool()
    seen[..., 24:] = False  # the right half of every tile
    (first, _), _ = seen_by_methods(family, model, {**inputs, "pixel_attention_mask": seen})
    scores = torch.cat(first).view(-1, 6, 6)
    assert (scores[..., 3:] == 0).all()
    assert (scores[..., :3] > 0).all()


def test_they_do_not_depend_on_the_memory_there_is(monkeypatch):
    family = FAMILIES["qwen"]
    model, inputs = family.build(), family.inputs("single")
    (expected, _), _ = seen_by_methods(family, model, inputs)
    monkeypatch.setattr("vtfast.models.vision_scores._MAX_BYTES", 4 * 4 * 144 * 5)
    (got, _), _ = seen_by_methods(family, model, inputs)
    assert torch.allclose(torch.cat(got), torch.cat(expected), rtol=1e-5, atol=0)


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_attention_with_a_mask_works_too():
    family = FAMILIES["smolvlm"]
    model, inputs = family.build(), family.inputs("single")
    shape = *inputs["pixel_values"].shape[:2], *inputs["pixel_values"].shape[3:]
    inputs["pixel_attention_mask"] = torch.ones(shape).bool()
    inputs["pixel_attention_mask"][..., 24:] = False
    (expected, _), _ = seen_by_methods(family, model, inputs)
    model.model.vision_model.set_attn_implementation("flex_attention")
    (got, _), _ = seen_by_methods(family, model, inputs)
    assert (torch.cat(got) - torch.cat(expected)).abs().max() <= 1e-6


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


def test_a_tile_of_which_nothing_is_seen_has_none():
    family = FAMILIES["smolvlm"]
    model, inputs = family.build(), family.inputs("single")
    shape = *inputs["pixel_values"].shape[:2], *inputs["pixel_values"].shape[3:]
    inputs["pixel_attention_mask"] = torch.zeros(shape).bool()
    (first, _), _ = seen_by_methods(family, model, inputs)
    assert (torch.cat(first) == 0).all()


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
