"""--skip-bad: a sample that cannot be asked does not end a command, and is named at its end."""

import json

import pytest
from command import answered, call, refused
from PIL import Image

from vtfast.toy import scenes

MODEL = ("--model", "toy-qwen", "--device", "cpu", "--data", "mine.jsonl", "--skip-bad")
COMMANDS = {
    "evaluate": ("evaluate", *MODEL, "--plan", "uniform"),
    "horizon": ("horizon", *MODEL, "--maps", "0", "--layers", "7"),
    "sweep": ("sweep", *MODEL, "--methods", "uniform", "--no-scores", "--layers", "7"),
    "score": ("score", *MODEL, "--sample", "all", "--layers", "7", "--window", "8"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three lines, of which the last has a picture of 1 x 3000 pixels."""
    pictures, questions, answers = scenes(2, 0, "shape_colour")
    pictures.append(Image.new("RGB", (3000, 1)))
    lines = []
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        about = {"image": f"{i}.png", "question": questions[0], "answer": answers[i % 2]}
        lines.append(json.dumps(about))
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_picture_that_the_processor_refuses_is_named_at_the_end(folder, command):
    result = answered(*COMMANDS[command], "--log", "run.jsonl", "--json")
    *_, head, line = result.stderr.splitlines()
    assert head == "Skipped 1 of the samples:"
    assert line.startswith("  the processor cannot take mine.jsonl line 3: absolute aspect ratio")
    (skipped,) = json.loads(result.stdout)["skipped"]
    assert skipped["name"] == "mine.jsonl line 3"
    assert len((folder / "run.jsonl").read_text().splitlines()) == 3

    scenes(1, 2, "shape_colour")[0][0].save(folder / "2.png")
    result = answered(*COMMANDS[command], "--log", "run.jsonl", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["skipped"] == []
    assert len((folder / "run.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_without_it_the_command_ends_with_one_line(folder, command):
    arguments = [word for word in COMMANDS[command] if word != "--skip-bad"]
    line = refused(call(*arguments))
    assert "cannot take mine.jsonl line 3: absolute aspect ratio must be smaller than 200" in line
    assert "correct it, or leave out such samples: --skip-bad" in line
