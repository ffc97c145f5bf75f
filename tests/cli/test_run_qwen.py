"""`vtfast run` on models that take pictures of any size and clips: the bundled Qwen2.5-VL."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from command import answered, call, checkpoint, refused
from PIL import Image

import vtfast
from vtfast import toy
from vtfast.cli import _answering
from vtfast.cli._answering import ask
from vtfast.cli._kept_views import kept_views
from vtfast.errors import InputError
from vtfast.inputs.pictures import Clip, open_picture
from vtfast.inputs.prompts import Prompt

QUESTION = "read the code ."
SIZES = ((96, 96), (144, 96))  # tokens of 12 x 12 pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A square and a wide scene."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn, _, _ = toy.scenes(2, 0, "code", SIZES)
    for number, picture in enumerate(drawn):
        picture.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five frames, all of them one scene."""
    folder = tmp_path_factory.mktemp("frames")
    (picture,), _, _ = toy.scenes(1, 0, "code")
    for number in range(5):
        picture.save(folder / f"{number}.png")
    return folder


def run(*options: object) -> dict:
    """`vtfast run --json` of the bundled Qwen2.5-VL."""
    ask = ("run", "--model", "toy-qwen", "--prompt", QUESTION, "--json", *options)
    with mock.patch.object(_answering, "ROUNDS", 1):
        return json.loads(answered(*ask).stdout)


def test_pictures_of_several_sizes_are_read_right(pictures: list[Path]) -> None:
    truths = toy.scenes(2, 0, "code", SIZES)[2]
    for picture, truth in zip(pictures, truths, strict=True):
        record = run("--image", picture, "--plan", "random", "--keep", "1")
        assert record["runs"][0]["answer"] == truth


def test_each_picture_has_the_tokens_of_its_size(pictures: list[Path]) -> None:
    record = run("--image", pictures[0], "--image", pictures[1])
    assert record["visual_tokens_per_picture"] == [8 * 8, 8 * 12]
    assert record["visual_tokens"] == 160


def test_a_clip_is_one_picture_of_many_frames(frames: Path) -> None:
    record = run("--video", frames)
    assert record["visual_tokens_per_picture"] == [3 * 8 * 8]  # two frames a step
    assert record["video"] == [str(frames)]
    assert record["runs"][0]["visual_tokens_average"] == pytest.approx(96, abs=0.5)


def test_a_clip_of_one_scene_reads_as_the_scene(frames: Path) -> None:
    record = run("--video", frames, "--plan", "random", "--keep", "1")
    assert record["runs"][0]["answer"] == toy.scenes(1, 0, "code")[2][0]


def test_max_frames_shortens_a_clip(frames: Path) -> None:
    assert run("--video", frames, "--max-frames", "2")["visual_tokens"] == 64


def test_pictures_and_a_clip_go_together(pictures: list[Path], frames: Path) -> None:
    record = run("--image", pictures[1], "--video", frames, "--compare")
    assert record["visual_tokens_per_picture"] == [96, 192]
    unpruned, pruned = record["runs"]
    assert unpruned["visual_tokens_average"] == 288
    assert pruned["visual_tokens_average"] == pytest.approx(144, abs=1)


def test_the_picture_of_what_was_kept_has_a_row_per_step(
    pictures: list[Path], frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept.png"
    run("--image", pictures[1], "--video", frames, "--out", out)
    with Image.open(out) as kept:
        tall, wide = 0.92 * 3.2, 0.92 * 3.2 * 8 / 12  # inches of a square and of the wide picture
        height = 3 * tall + wide + 4 * 0.08 * 3.2 + 3 * 0.5 + 1.04
        assert kept.width / kept.height == pytest.approx(3 * 3.2 / height, abs=0.01)


def test_views_are_what_the_report_says_was_kept(pictures: list[Path], frames: Path) -> None:
    found = checkpoint("toy-qwen")
    images = [(path.name, open_picture(path)) for path in pictures]
    clip = Clip(tuple(open_picture(path) for path in sorted(frames.iterdir())), 2.0)
    prompt = Prompt(found, QUESTION, images, clip)
    model = found.weights(torch.device("cpu"), "auto")
    with vtfast.patch(model, "divprune+random", keep=0.4, record=True) as handle:
        ask(model, prompt, 1)
    views = kept_views(prompt, handle)
    assert [view.grid for view in views] == [(8, 8), (8, 12), (8, 8), (8, 8), (8, 8)]
    names = ["0.png", "1.png", "frames 1-2 of 5", "frames 3-4 of 5", "frame 5 of 5"]
    assert [view.name for view in views] == names
    config, ids = model.config, prompt.inputs["input_ids"][0]
    visual = (ids == config.image_token_id) | (ids == config.video_token_id)
    columns = visual.nonzero()[:, 0].tolist()
    for stage, (_, kept) in enumerate(handle.report.kept.items()):
        starts = [sum(v.tokens for v in views[:i]) for i in range(len(views))]
        both = zip(views, starts, strict=True)
        shown = [columns[start + k] for v, start in both for k in v.stages[stage].kept]
        assert shown == kept[0].tolist()


@pytest.mark.parametrize("fps", [2.0, 8.0])
def test_the_rate_of_a_clip_reaches_the_model(frames: Path, fps: float) -> None:
    clip = Clip(tuple(open_picture(path) for path in sorted(frames.iterdir())), fps)
    prompt = Prompt(checkpoint("toy-qwen"), QUESTION, [], clip)
    assert prompt.inputs["second_per_grid_ts"].tolist() == [2 / fps]  # two frames a step


def test_a_picture_too_narrow_is_refused_by_its_processor(tmp_path: Path) -> None:
    Image.new("RGB", (2500, 4)).save(tmp_path / "line.png")
    ask = ("run", "--model", "toy-qwen", "--prompt", QUESTION)
    line = refused(call(*ask, "--image", tmp_path / "line.png"))
    assert line.startswith("error: --model toy-qwen cannot take this input: absolute aspect ratio")


def test_without_a_chat_template_only_llava_is_asked(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checkpoint("toy-qwen")
    monkeypatch.setattr(found.processor, "chat_template", None)
    with pytest.raises(
        InputError, match="has no chat template, and vtfast knows a plain one for L"
    ):
        Prompt(found, QUESTION, [("picture", open_picture(pictures[0]))])
