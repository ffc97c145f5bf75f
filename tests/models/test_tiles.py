"""What one picture is in families that cut pictures into tiles, and in Mistral3."""

from functools import partial
from math import prod

import pytest
import torch
from model_readings import evenly_spaced, mixed_word, picture_hash
from model_runs import OLD, continuation, first_rows, logits_of, probing
from tiny_models import FAMILIES, image_columns
from tiny_parts import IMAGE, Picture
from tiny_tiles import SIDE, TILE

import vtfast
from vtfast import Prune
from vtfast.models import family_of
from vtfast.runtime.call import read_call

TILED = ("internvl", "aria", "smolvlm", "llava-next", "llava-onevision")
ANY_TILES = {"image_grid_pinpoints": [[SIDE * high, SIDE * wide] for high in range(1, 5)
                                      for wide in range(1, 5)]}  # fmt: skip
# High and wide in pixels: square, flat, tall, one row of patches, small, larger than all tiles.
SIDES = [(48, 48), (50, 300), (300, 50), (7, 190), (5, 5), (400, 410), (96, 97), (61, 200)]


def pictures_of(family, model, inputs):
    """What the family says of the pictures in a call."""
    sources = family_of(model).sources(model.model, inputs)
    [pictures] = read_call(inputs, sources, None, (), None).pictures
    return pictures


def flat(features):
    return [f.flatten(0, -2) for f in features.pooler_output]


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_a_picture_of_any_shape_is_an_overview_and_rows_with_a_token_at_their_ends(name):
    model = FAMILIES[name].build()
    model.config.image_grid_pinpoints = ANY_TILES["image_grid_pinpoints"]
    sizes = torch.tensor(SIDES)
    pixels = torch.randn(len(SIDES), 17, 3, SIDE, SIDE)
    with torch.no_grad():
        seen = flat(model.model.get_image_features(pixels, sizes, return_dict=True))
    ids = torch.full((1, sum(map(len, seen))), IMAGE)
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}
    pictures = pictures_of(FAMILIES[name], model, inputs)
    assert pictures.sizes == [len(f) for f in seen]
    for features, parts, size in zip(seen, pictures.parts, pictures.sizes, strict=True):
        assert size == sum(map(prod, parts))
        assert prod(parts[0]) == TILE
        if len(parts) == 1:  # too flat for a row of details
            continue
        _, rows, columns = parts[1]
        ends = features[TILE:].view(rows, columns, -1)[:, -1]
        assert torch.equal(ends, model.model.image_newline.expand(rows, -1))
    assert len(set(pictures.parts)) >= 5
    assert [len(parts) for parts in pictures.parts].count(1) == 1


def test_of_several_pictures_in_a_sample_onevision_may_see_overviews_alone():
    family = FAMILIES["llava-onevision"]
    model, sides = family.build(), torch.tensor([(48, 96), (96, 48), (96, 96)])
    pixels, numbers = torch.randn(3, 5, 3, SIDE, SIDE), torch.tensor([2, 1])
    with torch.no_grad():
        seen = flat(
            model.model.get_image_features(
                pixels, sides, batch_num_images=numbers, return_dict=True
            )
        )
    columns = [len(seen[0]) + len(seen[1]) + 2, len(seen[2]) + 2]
    ids = torch.full((2, max(columns)), 3)
    ids[0, 1 : columns[0] - 1] = IMAGE
    ids[1, 1 : columns[1] - 1] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    inputs |= {"image_sizes": sides, "batch_num_images": numbers}
    assert pictures_of(family, model, inputs).tiles == [1, 1, 5]
    with vtfast.patch(model, [Prune(2, "random", 10)]) as handle:
        logits_of(family, model, inputs)
    assert handle.report.tokens[0][-1] == 20
    assert handle.report.tokens[1][-1] == 10


def test_mistral3_tells_rows_and_columns():
    family, shapes = FAMILIES["mistral3"], [(1, 12, 4), (1, 2, 12), (1, 8, 8)]
    inputs = family.batch(family.samples([2, *[Picture(s) for s in shapes], 3]))
    found = pictures_of(family, family.build(), inputs)
    assert found.parts == [((1, 6, 2),), ((1, 1, 6),), ((1, 4, 4),)]
    assert found.sizes == [12, 6, 16]


def test_aria_has_as_many_tokens_for_a_tile_as_its_table_says():
    model = FAMILIES["aria"].build()
    model.config.projector_patch_to_query_dict[36] = 10
    pixels = torch.randn(3, 3, SIDE // 2, SIDE // 2)
    with torch.no_grad():
        seen = flat(model.model.get_image_features(pixels, return_dict=True))
    assert list(map(len, seen)) == [10] * 3
    ids = torch.tensor([[1, *[IMAGE] * 10, 2, *[IMAGE] * 20, 3]])
    pictures = pictures_of(FAMILIES["aria"], model, {"input_ids": ids, "pixel_values": pixels})
    assert pictures.sizes == [10, 20]
    assert pictures.tiles == [1, 2]


@pytest.mark.parametrize("name", [*TILED, "mistral3"])
def test_budgets_are_for_pictures_not_for_tiles_or_rows(name):
    family = FAMILIES[name]
    model = family.build()
    samples = family.samples(
        [2, Picture((1, 8, 12), 1), 1, Picture(seed=2), 3], [3, Picture((1, 12, 4), 3)]
    )
    inputs = family.batch(samples)
    with vtfast.patch(model, [Prune(2, "random", 7)], record=True) as handle:
        logits_of(family, model, inputs)
    for row, pictures in enumerate(image_columns(family, samples, inputs)):
        for columns in pictures:
            assert torch.isin(columns, handle.report.kept[2][row]).sum() == 7


@pytest.mark.parametrize("run", [logits_of, lambda f, m, i: continuation(m, i, steps=2)],
                         ids=["forward", "generate"])  # fmt: skip
@pytest.mark.parametrize("name", TILED)
def test_budgets_may_be_for_tiles(name, run):
    """Of LLaVA-NeXT's picture for the overview and for the details, whose tiles are one raster."""
    family, picture = FAMILIES[name], Picture((1, 8, 12), seed=1)
    samples = family.samples([2, picture, 3])
    inputs, model = family.batch(samples), family.build()
    plan = [Prune(0, "diversity", 9, per="tile"), Prune(3, "random", 0.1, per="tile")]
    with vtfast.patch(model, plan, record=True) as handle:
        run(family, model, inputs)
    [[columns]] = image_columns(family, samples, inputs)
    tiles = columns.split(TILE)
    if name.startswith("llava"):
        tiles = columns[:TILE], columns[TILE:]
    for layer, keep in ((0, lambda n: 9), (3, lambda n: int(0.1 * n + 0.5))):
        kept = [int(torch.isin(t, handle.report.kept[layer][0]).sum()) for t in tiles]
        assert kept == [keep(len(t)) for t in tiles]


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_picture_without_tiles_is_one_tile(name):
    family = FAMILIES[name]
    model, inputs, picks = family.build(), family.inputs("single"), []
    for per in ("image", "tile"):
        with vtfast.patch(model, [Prune(2, "diversity", 9, per=per)], record=True) as handle:
            logits_of(family, model, inputs)
        picks.append(handle.report.kept[2][0])
    assert torch.equal(*picks)


def test_a_clip_of_onevision_is_cut_by_frame_and_its_last_token_goes_with_the_last_frame():
    family, clip = FAMILIES["llava-onevision"], Picture((2, 12, 12), seed=1, video=True)
    samples = family.samples([2, clip, 3])
    inputs, model = family.batch(samples), family.build()
    with vtfast.patch(model, [Prune(2, "uniform", 0.5, per="frame")], record=True) as handle:
        logits_of(family, model, inputs)
    [[columns]] = image_columns(family, samples, inputs)
    first, last = columns[:9], columns[9:]
    assert len(last) == 10
    assert [int(torch.isin(c, handle.report.kept[2][0]).sum()) for c in (first, last)] == [5, 5]


@pytest.mark.parametrize("name", [*TILED, "mistral3"])
def test_uniform_spaces_tokens_in_every_grid_of_a_picture(name):
    family, picture = FAMILIES[name], Picture((1, 8, 12), seed=1)
    samples = family.samples([2, picture, 3])
    inputs, model = family.batch(samples), family.build()
    with vtfast.patch(model, [Prune(2, "uniform", 0.4)], record=True) as handle:
        logits_of(family, model, inputs)
    [[columns]] = image_columns(family, samples, inputs)
    [parts] = pictures_of(family, model, inputs).parts
    keep, expected, before = int(0.4 * len(columns) + 0.5), [], 0
    for grid in parts:
        n = prod(grid)
        share = keep * (before + n) // len(columns) - keep * before // len(columns)
        expected += [before + place for place in evenly_spaced(n, share, grid)]
        before += n
    assert columns[expected].tolist() == [
        c for c in handle.report.kept[2][0].tolist() if c in columns.tolist()
    ]


@pytest.mark.parametrize("name", TILED)
def test_budgets_by_frame_are_for_clips_alone(name):
    family = FAMILIES[name]
    inputs, model = family.batch(family.samples([2, Picture((1, 8, 12), 1), 3])), family.build()
    with vtfast.patch(model, [Prune(2, "random", 5, per="frame")]) as handle:
        logits_of(family, model, inputs)
    assert handle.report.tokens[0][-1] == 5


def test_tiles_may_be_smaller_than_the_config_says():
    model, ids = FAMILIES["smolvlm"].build(), torch.tensor([[1, 5, 7, *[IMAGE] * 9, 5, 8, 9]])
    with vtfast.patch(model, [Prune(2, "random", 3)]) as handle, torch.no_grad():
        model(input_ids=ids, pixel_values=torch.randn(1, 1, 3, SIDE // 2, SIDE // 2))
    assert handle.report.tokens[0][-1] == 3


@pytest.mark.parametrize("given", [list, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int])
def test_sizes_of_pictures_may_be_given_in_any_way(given):
    family = FAMILIES["llava-next"]
    model, inputs = family.build(), family.inputs("batch")
    with vtfast.patch(model, [Prune(2, "random", 3)], record=True) as handle:
        expected = logits_of(family, model, inputs)
        kept = handle.report.kept[2]
        found = logits_of(family, model, {**inputs, "image_sizes": given(inputs["image_sizes"])})
        assert all(map(torch.equal, handle.report.kept[2], kept))
    assert torch.equal(found, expected)


# -- image hashes ----------------------------------------------------------------------------------


def hashes_of(family, samples, run):
    """The hash of every picture in reading order, 0 ≤ hash < 2⁶⁴."""
    model, found = family.build(), []

    def look(context):
        found.append(context.image_hash)
        return first_rows(context)

    with vtfast.patch(model, [Prune(2, "test-probe", 0.5)]), probing(look):
        run(family, model, family.batch(samples))
    return [h % 2**64 for h in found[0].tolist()]


def generating(family, model, inputs, **how):
    continuation(model, inputs, steps=2, **how)


BEAMS = partial(generating, num_beams=2)
RUNS = {"forward": logits_of, "generate": generating, "beams": BEAMS}


def expected_hash(family, picture):
    """The hash of a picture from its pixels alone."""
    inputs = family.batch(family.samples([1, picture, 1]))
    pixels = inputs["pixel_values"]
    if family.name == "mistral3":
        return picture_hash(pixels)
    tiles = pixels.flatten(0, -4)
    return sum(mixed_word(picture_hash(t), i) for i, t in enumerate(tiles)) % 2**64


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("name", [*TILED, "mistral3"])
def test_a_picture_has_its_hash_in_any_company(name, run):
    """Beside larger pictures, whose tiles or pixels pad it, and beside a sample without any."""
    if OLD and run is BEAMS:
        pytest.skip("transformers hands the pictures of beams on in another order")
    family = FAMILIES[name]
    wide, square, tall = Picture((1, 8, 12), 1), Picture(seed=2), Picture((1, 12, 4), 3)
    samples = family.samples([2, square, 1, wide, 3], [4], [3, tall, 2])
    found = hashes_of(family, samples, run)
    one, two, three = (expected_hash(family, p) for p in (square, wide, tall))
    assert len({one, two, three}) == 3
    copies = 2 if run is BEAMS else 1
    assert found == [one, two] * copies + [three] * copies
