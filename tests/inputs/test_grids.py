"""Which visual tokens of a prompt belong to which picture, and where in it they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_checkpoints import FILES, MORE, TOKENS, write_processor
from tiny_models import FAMILIES

from vtfast import processors
from vtfast.cli._kept_views import kept_views
from vtfast.inputs.checkpoints import Checkpoint
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
        checkpoint = Checkpoint(name, FAMILIES[name].build(**MORE.get(name, {})).config, processor)
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
    ("name", "grids"),
    [
        ("llava", [(1, 6, 6)]),
        ("qwen3", [(1, 3, 4)]),
        ("glm46v", [(1, 2, 3)]),
        ("mistral3", [(1, 5, 6)]),
        ("internvl", [(1, 6, 6)] * 7),
        *[(name, [(1, 6, 6)] * 5) for name in ("idefics3", "smolvlm") if name in NAMES],
        *[(name, [(1, 6, 6), (1, 8, 12)]) for name in ("llava-next", "llava-onevision")],
    ],
)
def test_tokens_have_a_place_in_the_picture_or_its_tiles(ask, name, grids):
    """The tokens that end lines of the details of LLaVA-NeXT and OneVision have none."""
    prompt = ask(name, halves())
    assert [grid.columns.shape for grid in prompt.grids] == grids
    assert [(grid.number, grid.part) for grid in prompt.grids] == [
        (0, i) for i in range(len(grids))
    ]
    seen = np.concatenate([grid.columns.reshape(-1) for grid in prompt.grids])
    assert (np.diff(seen) > 0).all()
    assert set(seen.tolist()) <= set(prompt.columns.tolist())
    ends = 8 if name.startswith("llava-") else 0
    assert len(seen) + ends == len(prompt.columns) == TOKENS[name]


@pytest.mark.parametrize("name", [n for n in ("internvl", "idefics3", "smolvlm") if n in NAMES])
def test_a_tile_is_shown_as_the_model_sees_it(ask, name):
    """Tiles are row by row, the whole picture is the last of them."""
    prompt = ask(name, Image.new("RGB", HIGH, "white"), halves())
    white = [grid for grid in prompt.grids if grid.number == 0]
    first, *_, corner, last = (grid for grid in prompt.grids if grid.number == 1)
    assert {tuple(colour(prompt.as_seen(grid))) for grid in white} == {(1, 1, 1)}
    assert colour(prompt.as_seen(first)) == [1, 0, 0]
    assert colour(prompt.as_seen(corner)) == [0, 0, 1]
    assert colour(prompt.as_seen(last)) == [0.5, 0, 0.5]


UNPRUNED = SimpleNamespace(report=None, plan=SimpleNamespace(stages=()))


def test_tiles_are_views_of_their_own(ask):
    views = kept_views(ask("internvl", halves(WIDE), halves(HIGH)), UNPRUNED)
    assert [view.name for view in views] == [
        *[f"0, part {i} of 7" for i in range(1, 8)],
        *[f"1, part {i} of 3" for i in range(1, 4)],
    ]
    assert {(view.grid, view.picture.size) for view in views} == {((6, 6), (48, 48))}


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_overview_and_details_are_views_of_the_whole_picture(ask, name):
    views = kept_views(ask(name, halves(WIDE)), UNPRUNED)
    assert [(view.grid, view.picture.size) for view in views] == [((6, 6), WIDE), ((8, 12), WIDE)]


def test_what_is_kept_is_counted_from_the_first_patch_of_a_grid(ask):
    """Of the first token of each row of the details, and of a line's end, which is no patch."""
    prompt = ask("llava-next", halves(WIDE))
    rows = prompt.columns[36:].view(8, 13)
    kept = {0: [torch.cat([rows[:, 0], rows[3, 12:], prompt.columns[:2]]).sort().values]}
    stage = SimpleNamespace(layer=0, method="test")
    handle = SimpleNamespace(
        report=SimpleNamespace(kept=kept), plan=SimpleNamespace(stages=(stage,))
    )
    overview, details = kept_views(prompt, handle)
    assert overview.stages[0].kept == (0, 1)
    assert details.stages[0].kept == tuple(range(0, 96, 12))


def test_a_picture_is_shown_without_what_fills_it_up(ask):
    prompt = ask("mistral3", halves(WIDE), halves(HIGH))
    assert [prompt.as_seen(grid).size for grid in prompt.grids] == [(48, 40), (24, 48)]
    assert all(colour(prompt.as_seen(grid)) == [0.5, 0, 0.5] for grid in prompt.grids)
