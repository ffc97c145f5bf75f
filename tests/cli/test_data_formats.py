"""Every command reads the same data files and pictures in the same way."""

import base64
import json
from pathlib import Path

import pytest
from command import answered, call, refused
from PIL import Image

from vtfast import toy
from vtfast.toy.scene import Scene

MODEL = ("--model", "toy-llava-small", "--device", "cpu")
QUICK = {
    "score": ("--layers", "7", "--window", "8"),
    "horizon": ("--layers", "7", "--maps", "0"),
    "sweep": ("--layers", "7", "--methods", "random", "--no-scores", "--keep", "0.5"),
    "evaluate": ("--plan", "uniform"),
}
CODE = "read the code ."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scenes below `pictures/`, an animation, and the answers to their questions."""
    (tmp_path / "pictures").mkdir()
    scenes = [Scene.from_seed(seed).picture() for seed in (2, 3)]
    for number, scene in enumerate(scenes):
        scene.save(tmp_path / "pictures" / f"{number}.png")
    scenes[0].save(tmp_path / "a.gif", save_all=True, append_images=scenes[1:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(image: object, *turns: str, **other: object) -> dict[str, object]:
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"image": image, "conversations": said, **other}


def write(*entries: object) -> None:
    Path("data.json").write_text(json.dumps(entries, indent=2))


def ask(command: str, *options: object):
    return (command, *MODEL, "--data", "data.json", *QUICK[command], *options)


@pytest.mark.parametrize("command", QUICK)
def test_llavas_format_is_read(folder: Path, command: str) -> None:
    write(asked("0.png", f"<image>\n{CODE}", "K 1 M", "what is the main shape ?", "circle"))
    shown = answered(*ask(command, "--image-folder", "pictures"), "--json").stdout
    found = json.loads(shown)
    expected = {"question": f"<image>\n{CODE}"} if command == "score" else {"samples": 2}
    assert {name: found.get(name, found.get("settings", {}).get(name)) for name in expected} == (
        expected
    )


@pytest.mark.parametrize("command", QUICK)
def test_a_sample_without_a_picture_is_refused_or_skipped(folder: Path, command: str) -> None:
    without = {"id": 7, **asked(None, "why ?", "yes")}
    write(without, asked("pictures/0.png", CODE, "K 1 M"))
    line = refused(call(*ask(command)))
    says = (
        'entry 1 (id 7): it has no picture: "image" is missing or empty, so nothing can be pruned'
    )
    assert says in line
    assert says in " ".join(answered(*ask(command, "--skip-bad"), columns=400).stderr.split())


@pytest.mark.parametrize("command", QUICK)
def test_frames_that_are_left_out_are_said_in_one_line(folder: Path, command: str) -> None:
    write(asked("a.gif", CODE, "K 1 M"))
    assert answered(*ask(command)).stderr == "data: a.gif has 2 frames; only the first is used\n"


def test_run_and_score_say_it_of_their_pictures_too(folder: Path) -> None:
    run = ("run", "--image", "a.gif", "--prompt", CODE, "--json", "--max-new-tokens", "1")
    says = "a.gif has 2 frames; only the first is used"
    assert answered(*run, *MODEL).stderr == f"{says}\n"
    assert answered(*run, "--model", "toy-qwen").stderr == f"{says}; --video takes them all\n"
    own = ("--image", "a.gif", "--prompt", CODE, "--answer", "K 1 M")
    shown = answered("score", *MODEL, *own, *QUICK["score"])
    assert shown.stderr == f"your question: {says}\n"


def test_a_question_marks_where_its_picture_stands_in_every_command(folder: Path) -> None:
    """`<image>` before the question is what all of them write by themselves."""
    shown = []
    for text in (CODE, f"<image>\n{CODE}"):
        own = ("--image", "pictures/0.png", "--prompt", text, "--json")
        ran = json.loads(answered("run", *MODEL, *own, "--max-new-tokens", "1").stdout)
        scored = json.loads(
            answered("score", *MODEL, *own, "--answer", "K", *QUICK["score"]).stdout
        )
        shown.append((ran["text_tokens"], ran["runs"][0]["answer"], scored["pictures"]))
    assert shown[0] == shown[1]


def test_pictures_inside_the_file_give_the_answers_of_their_files(folder: Path) -> None:
    inside = base64.b64encode((folder / "pictures" / "0.png").read_bytes()).decode()
    rows = []
    for image in ("pictures/0.png", inside, f"data:image/png;base64,{inside}"):
        write(asked(image, CODE, "K 1 M"))
        found = json.loads(answered(*ask("score", "--json")).stdout)
        rows.append((found["p_full"], found["pictures"]))
    assert rows[1:] == rows[:1] * 2


def test_ink_on_glass_is_read_like_ink_on_white(folder: Path) -> None:
    """A model that is asked about a transparent picture gets black on white, not on black."""
    (picture,), (question,), _ = toy.scenes(1, 0, "code")
    ink = picture.convert("L").point(lambda value: 255 * (value < 128))
    glass = Image.new("RGBA", picture.size)
    glass.putalpha(ink)
    glass.save("glass.png")
    white = Image.new("RGB", picture.size, "white")
    white.paste((0, 0, 0), mask=ink)
    white.save("white.png")
    own = ("--prompt", question, "--answer", "K", *QUICK["score"], "--json")
    p = [
        json.loads(answered("score", *MODEL, "--image", name, *own).stdout)["p_full"]
        for name in ("glass.png", "white.png")
    ]
    assert p[0] == p[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--data", "data.json", "--image-folder", "gone"),
            "--image-folder gone: there is no such",
        ),
        (("--data", "data.json", "--image-folder", "a" * 5000), ": there is no such folder"),
        (("--task", "code", "--image-folder", "pictures"), "pass --data too"),
    ],
)
@pytest.mark.parametrize("command", QUICK)
def test_a_folder_of_pictures_that_cannot_be_used_is_refused(
    folder: Path, command: str, options: tuple[str, ...], says: str
) -> None:
    assert says in refused(call(command, *MODEL, *options))
