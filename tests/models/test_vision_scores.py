"""`ctx.vision_scores`: the attention of the eager tower, for every family and kind of picture."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import FAMILIES
from tiny_parts import Picture, encoded
from vision_looks import seen_by_methods

from vtfast.models import SUPPORTED, knows_tower

NAMES = ["llava", "qwen2", "qwen", "qwen3", "qwen3-moe", "qwen3.5", "qwen3.5-moe", "internvl"]
NAMES += ["llava-next", "llava-onevision", "mistral3", "smolvlm", "idefics3", "glm4v", "glm46v"]
CLASS_TOKEN = ("llava", "internvl", "llava-next")


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


def test_a_tile_of_which_nothing_is_seen_has_none():
    family = FAMILIES["smolvlm"]
    model, inputs = family.build(), family.inputs("single")
    shape = *inputs["pixel_values"].shape[:2], *inputs["pixel_values"].shape[3:]
    inputs["pixel_attention_mask"] = torch.zeros(shape).bool()
    (first, _), _ = seen_by_methods(family, model, inputs)
    assert (torch.cat(first) == 0).all()
