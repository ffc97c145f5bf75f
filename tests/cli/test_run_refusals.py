"""`vtfast run`: what cannot work is one line and exit code 2, as early as it can be known."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from command import answered, call, refused

from vtfast import toy
from vtfast.cli._answering import printable
from vtfast.inputs.checkpoints import Checkpoint
from vtfast.toy.scene import Scene

QUESTION = "read the code ."


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Scene.from_seed(2).picture().save(path)
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--image", "nope.png"], "--image nope.png: there is no such file"),
        (["--image", "text.png"], "--image text.png is not a picture that Pillow can read"),
        (["--image", "."], "--image . is a folder; pass the name of a picture"),
        (["--video", "empty"], "--video empty: there is no picture in this folder"),
        (["--video", "scene.png"], "is a single picture; pass it with --image"),
        (["--model", "owner/name"], "HF_HUB_OFFLINE keeps it from being downloaded; unset it"),
        (["--device", "cuda:77"], "--device cuda:77: "),
        (["--model", "toy-nonesuch"], "there is no toy model 'toy-nonesuch'; available: toy-llava"),
        (["--horizon", "12"], "horizon=12: preset 'divprune+random' first prunes"),
        (["--plan", "random", "--horizon", "3"], "preset 'random' has no horizon; leave it out"),
        (["--plan", "fastv", "--keep", "0.1"], "the smallest reachable keep is 0.1667"),
        (["--impl", "triton"], "its Triton kernel runs on CUDA tensors, got cpu; move them to"),
        (
            ["--prompt", "<image> or <image> ?"],
            "the text has 2 <image> and there is 1 picture; wri",
        ),
        (
            ["--image", "data:image/png;base64," + "a" * 5000],
            "…: expected a file; save the picture",
        ),
        (["--image", "a" * 5000], "cannot read this picture: File name too long"),
        (["--video", "b" * 5000], "cannot read this picture: File name too long"),
        (["--video", "frames"], "--video: toy-llava takes no video; pass frames with --image"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    picture: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    folder = picture.parent
    monkeypatch.chdir(folder)
    monkeypatch.setattr("vtfast.kernels._launch.INTERPRETED", False)
    (folder / "text.png").write_text("hello")
    for name in ("empty", "frames"):
        (folder / name).mkdir(exist_ok=True)
    for number in range(2):
        Scene.from_seed(number).picture().save(folder / "frames" / f"{number}.png")
    usual = ["--model", "toy-llava", "--prompt", QUESTION]
    if options[0] not in ("--image", "--video"):
        usual += ["--image", "scene.png"]
    assert says in refused(call("run", *usual, *options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--horizon", "12"], "horizon=12"),
        (["--prompt", "<image> or <image> ?"], "cannot take this prompt: the text has 2 <image>"),
        (["--device", "banana"], "--device banana"),
    ],
    ids=["plan", "prompt", "device"],
)
def test_what_can_be_refused_is_refused_before_the_weights_are_read(
    picture: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    bundled = Path(toy.__file__).parent / "checkpoints" / "llava"
    folder = Path(shutil.copytree(bundled, tmp_path / "checkpoint"))
    (folder / "model.safetensors").unlink()
    ask = ("run", "--model", folder, "--image", picture, "--prompt", QUESTION)
    assert "weights" in refused(call(*ask))
    assert says in refused(call(*ask, *options))


def test_running_out_of_memory_is_one_line_that_says_what_to_do(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Checkpoint, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More words.")

    monkeypatch.setattr(Checkpoint, "weights", full)
    ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
    assert refused(call(*ask)) == (
        "error: --model toy-llava does not fit: CUDA out of memory; pass --dtype bfloat16, a "
        "smaller picture or --device cpu"
    )


def test_a_package_that_breaks_transformers_is_named_beside_vtfast_doctor(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a torchvision built for another torch does: transformers hides its error in another."""

    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "vtfast.cli._answering":
                cause = ImportError("operator torchvision::nms does not exist")
                raise ImportError("cannot import name 'TextStreamer'") from cause

    monkeypatch.delitem(sys.modules, "vtfast.cli._answering", raising=False)
    monkeypatch.delattr("vtfast.cli._answering", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
    line = refused(call(*ask))
    assert line == (
        "error: transformers cannot be loaded (operator torchvision::nms does not exist); vtfast "
        "doctor says what to fix"
    )


def test_an_answer_cannot_control_the_terminal() -> None:
    assert printable("red\x1b[2J\x07 \nblue\t✓") == "red[2J \nblue\t✓"


def test_a_terminal_without_unicode_gets_the_table_too(picture: Path) -> None:
    ask = ("run", "--model", "toy-llava", "--image", picture, "--prompt", QUESTION)
    assert "KV cache" in answered(*ask, charset="ascii").stdout
