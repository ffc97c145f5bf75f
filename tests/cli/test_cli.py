"""The command `vtfast`: help, versions, and one line for a user's mistake. No model runs."""

import importlib
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from command import call, python, refused
from repository import ROOT

import vtfast
from vtfast import cli
from vtfast.errors import PlanError
from vtfast.presets import IN_WORDS, PRESETS
from vtfast.toy import TASKS
from vtfast.toy.scene import Scene

# Command: how many examples its help shows at least, and all of its options.
_STUDY = "model task data image-folder skip-bad seed layers window per out json device dtype"
COMMANDS = {
    "demo": (6, "plan keep seed out json model scene-seed no-timing"),
    "run": (
        4,
        "model image video prompt plan keep horizon import compare max-new-tokens out json "
        "max-frames fps device dtype seed path impl",
    ),
    "score": (3, f"{_STUDY} image prompt answer sample log"),
    "horizon": (3, f"{_STUDY} samples log maps tolerance"),
    "sweep": (3, f"{_STUDY} samples log methods import keep seeds no-scores"),
    "evaluate": (
        3,
        "model plan keep horizon import task data image-folder samples skip-bad scene-seed seed "
        "match max-new-tokens batch positions path log out json device dtype",
    ),
    "tune": (
        2,
        "model task data image-folder max-loss confidence methods import objective engine horizon "
        "samples skip-bad scene-seed seed match max-new-tokens batch path log out picture json "
        "device dtype",
    ),
    "doctor": (2, "json"),
}
MEASURING = ("score", "horizon", "sweep", "evaluate")


class RanError(Exception):
    """Raised in place of the work of a command, once its options are accepted."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> type[RanError]:
    """What every command raises now when it would begin its work."""

    def begin() -> None:
        raise RanError

    for command in COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"vtfast.cli.{command}"), "consoles", begin)
    return RanError


def examples_of(command: str) -> list[list[str]]:
    """The command lines that the help of a command shows on a narrow terminal, as words."""
    shown = call(command, "--help", columns=80).stdout
    lines = (line.strip() for line in re.sub(r"\\\s*\n", " ", shown).splitlines())
    started = [line for line in lines if re.match(rf"(torchrun .*)?vtfast {command}", line)]
    return [shlex.split(line.partition("#")[0].partition("|")[0]) for line in started]


# Help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_vtfast_alone_prints_help(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert "Usage: vtfast" in result.stdout
    assert [command for command in COMMANDS if command not in result.stdout] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_examples_that_are_accepted(command: str, ran: type[RanError]) -> None:
    examples = examples_of(command)
    assert len(examples) >= COMMANDS[command][0]
    for example in examples:
        words = example[example.index(command) :]
        assert type(call(*words).exception) is ran, example


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str) -> None:
    shown = call(command, "--help").stdout
    assert set(re.findall(r"^│[ *]+--([\w-]+)", shown, re.MULTILINE)) == {
        *COMMANDS[command][1].split(),
        "help",
    }


@pytest.mark.parametrize("command", ["demo", "run", "evaluate"])
def test_help_names_every_preset(command: str) -> None:
    """By themselves, or as one that goes with what follows a plus sign."""
    shown = " ".join(call(command, "--help").stdout.replace("│", " ").split())
    assert IN_WORDS in shown
    alone, together = IN_WORDS.split("; ")
    first = together.partition(", each also with ")[0].split(", ")
    more = [f"{name}{then}" for name in first for then in ("", "+random", "+vtw")]
    assert {*alone.split(", "), *more} == set(PRESETS)


@pytest.mark.parametrize("command", MEASURING)
def test_help_names_every_task(command: str) -> None:
    shown = call(command, "--help").stdout
    assert [task for task in TASKS if task not in shown] == []


@pytest.mark.parametrize("command", ["run", *MEASURING])
def test_help_documents_the_json_object(command: str) -> None:
    shown = call(command, "--help").stdout
    assert "In the JSON object:" in shown
    fields = ("visual_tokens_per_layer", "seconds_to_first_token", "kv_cache_bytes")
    assert command != "run" or [field for field in fields if field not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_breaks_no_line_of_its_own_at_80_columns(command: str) -> None:
    shown = [line.strip() for line in call(command, "--help", columns=80).stdout.splitlines()]
    function = getattr(importlib.import_module(f"vtfast.cli.{command}"), command)
    lines = (line.strip() for line in function.__doc__.splitlines())
    assert [line for line in lines if line not in (*shown, "\b")] == []


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"vtfast {vtfast.__version__}\n")


def test_help_and_refusals_load_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'PIL', 'triton'}"
    lines = [*([command, "--help"] for command in COMMANDS), ["demo", "--plan", "nonesuch"]]
    code = (
        "from vtfast.cli import app\n"
        f"for line in {lines}:\n"
        "    try:\n        app(line)\n"
        "    except SystemExit as end:\n        print('code', end.code)\n"
        f"print('loaded:', *{heavy} & set(sys.modules))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^code (\d)$", done.stdout, re.MULTILINE) == ["0"] * len(COMMANDS) + ["2"]
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_console_script_and_the_module_are_one_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vtfast": "vtfast.cli:main"}
    monkeypatch.setattr(sys, "argv", ["vtfast", "demo", "--help"])
    shown = []
    for start in (cli.main, lambda: runpy.run_module("vtfast", run_name="__main__")):
        with pytest.raises(SystemExit, match="0"):
            start()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert "Usage: vtfast demo" in shown[0]


# Refusals

ASK = ("run", "--model", "toy-llava", "--prompt", "read the code .")
SHOW = (*ASK, "--image", "scene.png")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dmo"], "No such command 'dmo'"),
        (["demo", "--kep", "0.5"], "--keep"),
        (["demo", "surplus"], "surplus"),
        (["demo", "--plan"], "--plan"),
        (["demo", "--plan", "nonesuch"], "unknown preset 'nonesuch'; pass random, uniform"),
        (["demo", "--keep", "half"], "--keep"),
        (["demo", "--keep", "0"], "--keep 0: expected a share above 0, up to 1"),
        (["demo", "--keep", "-0.5"], "--keep -0.5: expected a share above 0, up to 1"),
        (["demo", "--keep", "1.01"], "--keep 1.01: expected a share above 0, up to 1"),
        (["demo", "--keep", "nan"], "--keep nan: expected a share above 0, up to 1"),
        (["demo", "--scene-seed", "-1"], "--scene-seed"),
        (["demo", "--seed", "x"], "--seed"),
        (["demo", "--out", "kept.jpg"], "pass a name that ends in .png"),
        (["demo", "--out", "no/such/folder/kept.png"], "there is no folder no/such/folder"),
        (["demo", "--out", "a" * 300 + ".png"], "File name too long"),
        (["run"], "--model"),
        (["run", "--model", "toy-llava"], "--prompt"),
        ([*ASK], "there is nothing to look at; pass --image or --video"),
        ([*SHOW, "--plan", "nonesuch"], "unknown preset 'nonesuch'; pass random, uniform"),
        ([*SHOW, "--keep", "1.5"], "--keep 1.5: expected a share above 0, up to 1"),
        ([*SHOW, "--horizon", "-1"], "--horizon"),
        ([*SHOW, "--max-new-tokens", "0"], "--max-new-tokens"),
        ([*SHOW, "--max-frames", "0"], "--max-frames"),
        ([*SHOW, "--fps", "0"], "--fps 0: expected a number above 0"),
        ([*SHOW, "--dtype", "fp8"], "--dtype fp8: pass one of auto, float32"),
        ([*SHOW, "--path", "short"], "--path short: pass one of auto, packed, padded"),
        ([*SHOW, "--impl", "cuda"], "--impl cuda: pass one of auto, eager, triton"),
        ([*SHOW, "--out", "kept.jpg"], "pass a name that ends in .png"),
        ([*SHOW, "--out", "no/such/folder/kept.png"], "there is no folder no/such/folder"),
        (["doctor", "--fix"], "--fix"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    assert says in refused(call(*arguments))


def test_out_may_not_be_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "kept.png"
    folder.mkdir()
    assert "is a folder; pass the name of a file" in refused(call("demo", "--out", str(folder)))


@pytest.mark.parametrize("command", [("demo",), SHOW], ids=["demo", "run"])
def test_a_picture_that_could_not_be_written_is_refused_first(
    command: tuple[str, ...], ran: type[RanError], tmp_path: Path
) -> None:
    link = tmp_path / "kept.png"
    link.symlink_to(tmp_path / "gone" / "kept.png")
    line = refused(call(*command, "--out", link))
    assert line == f"error: cannot write {link}: No such file or directory; pass another --out"


def test_trying_whether_a_picture_can_be_written_leaves_nothing_behind(
    tmp_path: Path, ran: type[RanError]
) -> None:
    old = tmp_path / "old.png"
    old.write_text("kept as it is")
    for path in (old, tmp_path / "new.png"):
        assert type(call(*SHOW, "--out", path).exception) is ran
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]
    assert old.read_text() == "kept as it is"


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_the_cli_extra_one_line_says_what_to_install(name: str) -> None:
    code = f"sys.modules[{name!r}] = None\nfrom vtfast.cli import main\nmain()"
    assert refused(python(code)) == f"error: vtfast needs {name}; pip install 'vtfast[cli]'"


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(call("demo"))
    assert line == "error: the picture needs matplotlib; pip install 'vtfast[plot]'"


def _fail(monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | BaseException) -> None:
    """Let `vtfast demo` end in an error once its options are accepted."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("vtfast.cli.demo"), "consoles", fail)


def test_an_error_of_the_library_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, PlanError("keep=0.9: too much; pass less"))
    assert refused(call("demo")) == "error: keep=0.9: too much; pass less"


def test_a_bug_of_vtfast_is_not_reported_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, ZeroDivisionError)
    result = call("demo")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    _fail(monkeypatch, interrupt)
    result = call("demo")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_out_never_overwrites_an_input_file(tmp_path: Path, ran: type[RanError]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for picture in (tmp_path / "mine.png", frames / "0.png"):
        Scene.from_seed(0).picture().save(picture)
        before = picture.read_bytes()
        source = ("--video", frames) if picture.parent == frames else ("--image", picture)
        line = refused(call(*ASK, *source, "--out", picture))
        assert f"would write over {picture}; pass another name" in line
        assert picture.read_bytes() == before
