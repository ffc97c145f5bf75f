"""Random picks depend on the hash of the picture, and on nothing else of the batch or the run."""

from types import SimpleNamespace

import pytest
import torch
from cache_name import CACHE, cache_of
from model_readings import picture_hash
from model_runs import both_layouts, continuation, first_rows, logits_of, probing
from tiny_models import FAMILIES, image_columns
from tiny_parts import IMAGE, Picture, encoded

import vtfast
from vtfast import Prune
from vtfast.kernels.image_hash import image_hash
from vtfast.models import family_of_class
from vtfast.runtime.call import read_call

RANDOM = [Prune(0, "random", 0.5), Prune(3, "random", 0.2)]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def picture(family, seed):
    return Picture((1, 8, 8) if family.any_size else (1, 12, 12), seed=seed)


def picks(
    family, samples, *, run=logits_of, dtype=torch.float32, path="padded", seed=0, pixels=None
):
    """For every picture in reading order, which of its tokens survive each stage."""
    model, inputs = family.build(dtype), family.batch(samples, pixels or dtype)
    with vtfast.patch(model, RANDOM, path=path, seed=seed, record=True) as handle:
        run(family, model, inputs)
    columns = image_columns(family, samples, inputs)
    return [
        [torch.isin(image, kept[row]).tolist() for kept in handle.report.kept.values()]
        for row, images in enumerate(columns)
        for image in images
    ]


def generating(family, model, inputs):
    continuation(model, inputs, steps=2)


# -- the hash --------------------------------------------------------------------------------------


@families
def test_methods_see_the_hash_of_every_picture(family):
    samples = family.samples([2, picture(family, 1), 1, picture(family, 2), 3], [3])
    inputs, hashes = family.batch(samples), []

    def look(context):
        hashes.extend(context.image_hash.tolist())
        return first_rows(context)

    model = family.build()
    with vtfast.patch(model, [Prune(2, "test-probe", 0.5)]), probing(look):
        logits_of(family, model, inputs)
    pixels, grid = inputs["pixel_values"].chunk(2), (0, 0, 0)
    if family.any_size:
        grid = (1, 8, 8)
    assert [h % 2**64 for h in hashes] == [picture_hash(p, grid) for p in pixels]


@pytest.mark.parametrize("run", [logits_of, generating], ids=["forward", "generate"])
@pytest.mark.parametrize(("plan", "times"), [(RANDOM, 1), ([Prune(2, "diversity", 0.5)], 0)])
@families
def test_pixels_are_hashed_once_and_only_where_random_draws(monkeypatch, family, plan, times, run):
    """Once a plain forward hashed every picture twice, and every plan hashed."""
    hashed = []
    monkeypatch.setattr(
        "vtfast.models.generic.image_hash", lambda *x, **o: hashed.append(x) or image_hash(*x, **o)
    )
    model = family.build()
    with vtfast.patch(model, plan):
        run(family, model, family.inputs("single"))
    assert len(hashed) == times


@pytest.mark.parametrize("run", [logits_of, generating], ids=["forward", "generate"])
@pytest.mark.parametrize("impl", ["auto", "eager", "triton"])
def test_pictures_are_hashed_by_the_implementation_of_the_patch(monkeypatch, impl, run):
    asked = []
    monkeypatch.setattr(
        "vtfast.models.generic.image_hash", lambda *x, **o: asked.append(o) or image_hash(*x)
    )
    family = FAMILIES["qwen"]
    model = family.build()
    with vtfast.patch(model, [Prune(3, "random", 0.2)], impl=impl, path="padded"):
        run(family, model, family.inputs("single"))
    assert asked == [{"impl": impl}]


@both_layouts
def test_without_pixels_a_picture_is_known_by_its_number_in_its_sample(family, path):
    """Features encoded elsewhere; the count continues in a later turn on the same cache."""
    samples = family.samples(
        [2, picture(family, 1), 1, picture(family, 2), 3], [3, picture(family, 4)]
    )
    inputs, model, hashes = family.batch(samples), family.build(), []
    positions = torch.zeros_like(
        inputs["input_ids"]
    )  # any will do; Qwen cannot find a second turn's
    inputs["position_ids"] = positions.expand(3, -1, -1) if family.any_size else positions

    def look(context):
        hashes.append(context.image_hash.tolist())
        return first_rows(context)

    def turn(**more):
        with torch.no_grad():
            features = encoded(model, "image", inputs)
        with vtfast.patch(model, [Prune(2, "test-probe", 0.5)], path=path), torch.no_grad():
            given = {k: v for k, v in inputs.items() if k != "pixel_values"}
            return model(**{**given, **more}, mm_encoder_outputs={"image": features})

    with probing(look):
        cache = cache_of(turn())
        mask = torch.cat([inputs["attention_mask"]] * 2, 1)
        turn(attention_mask=mask, **{CACHE: cache})
    assert hashes == [[0, 1, 0], [2, 3, 1]]


# -- the picks -------------------------------------------------------------------------------------


@both_layouts
def test_a_picture_draws_the_same_picks_alone_and_in_a_batch(family, path):
    first, second = picture(family, 1), picture(family, 2)
    together = picks(
        family, family.samples([3], [2, first, 1], [4, second, 2, first, 5]), path=path
    )
    [alone] = picks(family, family.samples([4, first, 7]), path=path)
    assert together[0] == together[2] == alone
    assert together[1] != alone


@both_layouts
def test_generate_draws_the_picks_of_a_plain_forward(family, path):
    """Whether or not transformers encoded the pictures before the forward."""
    samples = family.named("batch")
    assert picks(family, samples, run=generating, path=path) == picks(family, samples, path=path)


@families
def test_half_and_full_precision_draw_the_same_picks(family):
    samples = family.named("batch")
    expected = picks(family, samples)
    assert picks(family, samples, dtype=torch.bfloat16) == expected
    assert picks(family, samples, dtype=torch.bfloat16, pixels=torch.float32) == expected
    assert picks(family, samples, pixels=torch.bfloat16) == expected


@families
def test_both_layouts_draw_the_same_picks(family):
    samples = family.named("batch")
    assert picks(family, samples, path="packed") == picks(family, samples, path="padded")


@families
def test_the_seed_changes_the_picks(family):
    samples = family.named("single")
    assert picks(family, samples, seed=1) != picks(family, samples, seed=2)


@families
def test_the_same_seed_repeats_the_picks(family):
    samples = family.named("single")
    assert picks(family, samples, seed=-7) == picks(family, samples, seed=-7)


@families
def test_different_pictures_draw_different_picks(family):
    first, second = picks(family, family.samples([2, picture(family, 1), 1, picture(family, 2), 3]))
    assert first != second


@pytest.mark.parametrize(
    ("tokens", "sides", "grid"),
    [
        (576, (336, 336), (1, 24, 24)),
        (577, (336, 336), (1, 24, 24)),  # a class token is not part of the grid
        (577, (168, 672), (1, 12, 48)),
        (576, None, (1, 24, 24)),  # features alone: pictures count as square
    ],
)
def test_llava_tells_the_grid_of_pictures_encoded_before(tokens, sides, grid):
    features = [torch.zeros(tokens, 8), torch.zeros(tokens, 8)]
    encoded = SimpleNamespace(pooler_output=features, last_hidden_state=True)
    ids = torch.full((1, 2 * tokens), IMAGE)
    strategy = "full" if tokens % 2 else "default"
    tower = SimpleNamespace(image_size=336, patch_size=14, model_type="clip_vision_model")
    config = SimpleNamespace(
        image_token_id=IMAGE, vision_config=tower, vision_feature_select_strategy=strategy
    )
    multimodal = SimpleNamespace(config=config)
    llava = family_of_class("LlavaForConditionalGeneration")
    if sides is not None:
        given = {"pixel_values": torch.zeros(2, 3, *sides)}
        llava.encode(multimodal, "image", given, lambda: encoded, needs=())
    call = {"input_ids": ids, "mm_encoder_outputs": {"image": encoded}}
    sources = llava.sources(multimodal, call)
    [pictures] = read_call({}, sources, None, (), None).pictures
    class_token = ((1, 1, 1),) * (tokens % 2)
    assert pictures.sizes == [tokens] * 2
    assert pictures.parts == [(*class_token, grid)] * 2
