"""Which visual tokens of a prompt belong to which picture, and where in it they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_checkpoints import FILES, TOKENS, write_processor
from tiny_parts import IMAGE

from vtfast import processors
from vtfast.cli._kept_views import kept_views
from vtfast.errors import InputError
from vtfast.inputs.checkpoints import Checkpoint
from vtfast.inputs.grids import Grid, grids_of_pixels
from vtfast.inputs.prompts import Prompt

# The stock processors of GLM-4V and InternVL hand tensors to NumPy in a way that it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

HIDDEN = [  # not to be had without torchvision in transformers 5.17
    name
    for name, kind in (("idefics3", "Idefics3"), ("smolvlm", "SmolVLM"))
    if getattr(getattr(transformers, f"{kind}ImageProcessorPil"), "is_dummy", False)
]
NAMES = [name for name in FILES if name not in HIDDEN]
WIDE, HIGH = (110, 80), (60, 120)


def halves(size=WIDE):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2, 0, *size))
    return picture


def colour(picture):
    """The mean colour, a little rounded."""
    return [round(value / 255, 1) for value in np.asarray(picture).mean((0, 1))]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """A prompt about pictures, as the processor of a family encodes it."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)

    def encode(name, *pictures):
        processor = processors.load(write_processor(name, tmp_path), local_files_only=True)
        checkpoint = Checkpoint(name, SimpleNamespace(image_token_id=IMAGE), processor)
        return Prompt(checkpoint, "how many", [(f"{i}", p) for i, p in enumerate(pictures)])

    return encode


@pytest.mark.parametrize("name", NAMES)
def test_each_picture_has_as_many_tokens_as_alone(ask, name):
    wide, high = halves(WIDE), halves(HIGH)
    together, alone = ask(name, wide, high), ask(name, high)
    assert sum(together.pictures) == len(together.columns)
    if name == "llava-onevision":  # shows each of several pictures whole, without tiles
        assert together.pictures == [6 * 6 + 1] * 2
    else:
        assert together.pictures == [TOKENS[name], *alone.pictures]
    assert alone.pictures == [len(alone.columns)]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("llava", Grid(1, 6, 6)),
        ("qwen3", Grid(1, 3, 4)),
        ("glm46v", Grid(1, 2, 3)),
        ("mistral3", Grid(1, 5, 6)),
        ("internvl", Grid(7, 6, 6)),
        *[(name, Grid(5, 6, 6)) for name in ("idefics3", "smolvlm") if name in NAMES],
    ],
)
def test_tokens_have_a_place_in_the_picture_or_its_tiles(ask, name, grid):
    prompt = ask(name, halves())
    assert prompt.grids == [grid]
    assert grid.tokens == TOKENS[name]


def test_a_class_token_has_no_place():
    pixels = {"pixel_values": torch.zeros(2, 3, 48, 48)}
    assert grids_of_pixels(pixels, [37, 37]) == [Grid(1, 6, 6, skip=1)] * 2


@pytest.mark.parametrize("name", [n for n in ("internvl", "idefics3", "smolvlm") if n in NAMES])
def test_a_tile_is_shown_as_the_model_sees_it(ask, name):
    """Tiles are row by row, the whole picture is the last of them."""
    prompt = ask(name, Image.new("RGB", HIGH, "white"), halves())
    steps = prompt.grids[1].steps
    assert colour(prompt.as_seen(0)) == [1, 1, 1]
    assert colour(prompt.as_seen(1, 0)) == [1, 0, 0]
    assert colour(prompt.as_seen(1, steps - 2)) == [0, 0, 1]
    assert colour(prompt.as_seen(1, steps - 1)) == [0.5, 0, 0.5]


def test_tiles_are_views_of_their_own(ask):
    prompt = ask("internvl", halves(WIDE), halves(HIGH))
    unpruned = SimpleNamespace(report=None, plan=SimpleNamespace(stages=()))
    views = kept_views(prompt, unpruned)
    assert [view.name for view in views] == [
        *[f"0, tile {i} of 7" for i in range(1, 8)],
        *[f"1, tile {i} of 3" for i in range(1, 4)],
    ]
    assert {(view.grid, view.picture.size) for view in views} == {((6, 6), (48, 48))}


def test_a_picture_is_shown_without_what_fills_it_up(ask):
    prompt = ask("mistral3", halves(WIDE), halves(HIGH))
    assert [prompt.as_seen(i).size for i in (0, 1)] == [(48, 40), (24, 48)]
    assert all(colour(prompt.as_seen(i)) == [0.5, 0, 0.5] for i in (0, 1))


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_what_is_no_grid_is_not_drawn(ask, name):
    prompt = ask(name, halves())
    assert prompt.grids == []
    with pytest.raises(InputError, match=f"tokens of {name} are no grid .*; leave out --out"):
        prompt.check_grids()
