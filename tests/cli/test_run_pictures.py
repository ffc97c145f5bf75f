"""`vtfast run`: pictures as the model is given them, and what was kept of each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import answered, checkpoint
from PIL import Image

import vtfast
from vtfast.cli._answering import ask
from vtfast.cli._kept_views import kept_views
from vtfast.inputs.prompts import Prompt
from vtfast.toy.scene import Scene

QUESTION = "read the code ."


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two scenes."""
    for number in range(2):
        Scene.from_seed(number).picture().save(tmp_path / f"{number}.png")
    return sorted(tmp_path.iterdir())


def run(*options: object) -> dict:
    """`vtfast run --json` of the bundled LLaVA."""
    ask = ("run", "--model", "toy-llava", "--prompt", QUESTION, "--json", *options)
    return json.loads(answered(*ask).stdout)


def test_several_pictures_each_have_their_tokens(pictures: list[Path]) -> None:
    record = run("--image", pictures[0], "--image", pictures[1], "--keep", "0.5")
    assert record["visual_tokens_per_picture"] == [64, 64]
    (pruned,) = record["runs"]
    assert pruned["visual_tokens_average"] == pytest.approx(64, abs=1)


def test_the_picture_of_what_was_kept_has_a_row_per_picture(pictures: list[Path]) -> None:
    out = pictures[0].with_name("rows.png")
    assert run("--image", pictures[0], "--image", pictures[1], "--out", out)["picture"] == str(out)
    with Image.open(out) as kept:
        assert kept.width / kept.height == pytest.approx(3 * 3.2 / (2 * 3.2 + 1.04 + 0.5), abs=0.01)


def test_the_views_are_what_the_report_says_was_kept() -> None:
    found = checkpoint("toy-llava")
    images = [(str(i), Scene.from_seed(i).picture()) for i in range(2)]
    prompt = Prompt(found, QUESTION, images)
    model = found.weights(torch.device("cpu"), "auto")
    with vtfast.patch(model, keep=0.4, record=True) as handle:
        ask(model, prompt, 1)
    views = kept_views(prompt, handle)
    assert [view.grid for view in views] == [(8, 8)] * 2
    for stage, (layer, kept) in enumerate(handle.report.kept.items()):
        ids = prompt.inputs["input_ids"][0]
        image = (ids == model.config.image_token_id).nonzero()[:, 0].tolist()
        columns = [image[64 * i + k] for i, v in enumerate(views) for k in v.stages[stage].kept]
        assert views[0].stages[stage].layer == layer
        assert columns == kept[0].tolist()


def test_the_picture_shown_is_the_one_the_model_is_given() -> None:
    """A wide picture reaches this model squeezed into a square."""
    found = checkpoint("toy-llava")
    wide = Scene.from_seed(3).picture().resize((192, 96))
    prompt = Prompt(found, QUESTION, [("wide", wide)])
    model = found.weights(torch.device("cpu"), "auto")
    with vtfast.patch(model, record=True) as handle:
        ask(model, prompt, 1)
    (view,) = kept_views(prompt, handle)
    expected = wide.resize((96, 96), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(view.picture, int) - np.asarray(expected, int))
    assert difference.max() <= 2


def test_a_processor_without_a_template_gets_llavas_plain_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, scene = checkpoint("toy-llava"), Scene.from_seed(2)
    templated = Prompt(found, QUESTION, [("scene", scene.picture())])
    monkeypatch.setattr(found.processor, "chat_template", None)
    plain = Prompt(found, QUESTION, [("scene", scene.picture())])
    assert plain.written == templated.written == f"USER: <image>\n{QUESTION} ASSISTANT:"
    assert torch.equal(plain.inputs["input_ids"], templated.inputs["input_ids"])
