"""`generate(inputs_embeds=…)`: prompts whose pictures the caller has merged in already."""

import warnings

import pytest
import torch
from cache_name import CACHE, cache_of
from model_runs import FOUR_STAGES, OLD, both_layouts
from tiny_models import FAMILIES

import vtfast
from vtfast import Prune


@torch.no_grad()
def merged(model, inputs):
    """The prompt's embeddings with the features of its pictures in their places."""
    inner, ids = model.model, inputs["input_ids"]
    embeds = inner.get_input_embeddings()(ids)
    for pixels, grid, token, get in (
        ("pixel_values", "image_grid_thw", "image_token_id", "get_image_features"),
        ("pixel_values_videos", "video_grid_thw", "video_token_id", "get_video_features"),
    ):
        if pixels not in inputs:
            continue
        given = (inputs[name] for name in (pixels, grid, "pixel_mask") if name in inputs)
        features = torch.cat(list(getattr(inner, get)(*given).pooler_output))
        where = (ids == getattr(model.config, token))[..., None]
        embeds = embeds.masked_scatter(where, features)
    return embeds


def without_pixels(inputs):
    return {name: value for name, value in inputs.items() if not name.startswith("pixel")}


CASES = [("llava", "single"), ("llava", "batch"), ("qwen", "batch"), ("qwen", "video")]


@pytest.mark.parametrize("path", ["padded", "packed"])
@pytest.mark.parametrize(("name", "case"), CASES, ids=map("-".join, CASES))
def test_prompts_with_ids_beside_embeddings_are_pruned_as_ever(name, case, path):
    """But random picks depend on the picture's number in its sample where there are no pixels."""
    family = FAMILIES[name]
    model, inputs = family.build(), family.inputs(case)
    plan = [stage for stage in FOUR_STAGES if stage.method != "random"]
    how = {"max_new_tokens": 8, "do_sample": False}
    with vtfast.patch(model, plan, path=path, record=True) as handle:
        expected, kept = model.generate(**inputs, **how), handle.report.kept
        embeds = merged(model, inputs)
        found = model.generate(**without_pixels(inputs), inputs_embeds=embeds, **how)
        assert torch.equal(found, expected)
        for layer, columns in kept.items():
            assert all(map(torch.equal, handle.report.kept[layer], columns))


@both_layouts
def test_embeddings_alone_give_one_warning_that_names_the_fix(family, path):
    model, inputs = family.build(), family.inputs("single")
    embeds = merged(model, inputs)
    call = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    expected = model.generate(**call, max_new_tokens=2, do_sample=False)
    with vtfast.patch(model, FOUR_STAGES, path=path):
        with pytest.warns(UserWarning, match="input_ids beside inputs_embeds") as said:
            found = model.generate(**call, max_new_tokens=2, do_sample=False)
        assert len(said) == 1
        assert torch.equal(found, expected)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            model(**call)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_text_by_ids_gives_no_warning(family):
    model, inputs = family.build(), family.batch(family.samples([9]))
    with vtfast.patch(model, FOUR_STAGES), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**inputs, max_new_tokens=2, do_sample=False)


@both_layouts
def test_a_later_turn_of_merged_features_is_pruned_too(family, path):
    if OLD and family.any_size:
        pytest.skip("before 5.23 such a turn gets other positions than by ids, patched or not")
    model, inputs = family.build(), family.inputs("single")
    plan, talk = [Prune(0, "diversity", 0.5)], family.batch(family.samples([5]))
    ids = torch.cat([talk["input_ids"], inputs["input_ids"]], 1)
    mask = torch.ones_like(ids)
    types = {}
    if "mm_token_type_ids" in inputs:
        text = torch.zeros_like(talk["input_ids"], dtype=torch.int32)
        types["mm_token_type_ids"] = torch.cat([text, inputs["mm_token_type_ids"]], 1)
    said = []
    for merge in (False, True):
        with vtfast.patch(model, plan, path=path) as handle:
            with torch.no_grad():
                cache = cache_of(model(input_ids=talk["input_ids"], use_cache=True))
            call = {**inputs, **types, "input_ids": ids, "attention_mask": mask}
            if merge:
                call = without_pixels(call)
                call["inputs_embeds"] = merged(model, {**inputs, "input_ids": ids})
            out = model.generate(**call, **{CACHE: cache}, max_new_tokens=4, do_sample=False)
            said.append((out[:, -4:], handle.report.tokens))
    assert torch.equal(said[0][0], said[1][0])
    assert said[0][1] == said[1][1]
