"""The command `vtfast`: help, versions, and one line where the user is at fault. No model runs."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from command import call, python, refused
from repository import ROOT

import vtfast
from vtfast.errors import PlanError
from vtfast.presets import PRESETS
from vtfast.toy.scene import Scene


def examples_of(command: str) -> list[list[str]]:
    """The command lines that the help of a command shows on a narrow terminal, as words."""
    shown = call(command, "--help", columns=80).stdout
    lines = (line.strip() for line in re.sub(r"\\\s*\n", " ", shown).splitlines())
    started = [line for line in lines if line.startswith(f"vtfast {command}")]
    return [shlex.split(line.partition("#")[0].partition("|")[0]) for line in started]


# Help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_vtfast_alone_prints_help(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert "Usage: vtfast" in result.stdout
    assert "demo" in result.stdout


@pytest.mark.parametrize(
    ("command", "count", "options"),
    [
        ("demo", 3, {"--plan", "--keep", "--json", "--scene-seed"}),
        ("run", 4, {"--model", "--image", "--video", "--prompt", "--keep", "--compare", "--json"}),
        ("doctor", 2, {"--json"}),
    ],
)
def test_help_teaches_by_examples(command: str, count: int, options: set[str]) -> None:
    examples = examples_of(command)
    assert len(examples) >= count
    assert options <= {word for example in examples for word in example if word[:2] == "--"}


@pytest.mark.parametrize("command", ["demo", "run"])
def test_help_names_every_option_and_preset(command: str) -> None:
    options = {"demo": "plan keep seed out json scene-seed no-timing"}
    options["run"] = "model image video prompt plan keep horizon compare max-new-tokens out json "
    options["run"] += "max-frames fps device dtype seed path impl"
    shown = call(command, "--help").stdout
    assert [name for name in options[command].split() if f"--{name} " not in shown] == []
    assert [preset for preset in PRESETS if preset not in shown] == []


def test_help_of_run_documents_the_json_object() -> None:
    shown = call("run", "--help").stdout
    for field in ("visual_tokens_per_layer", "seconds_to_first_token", "kv_cache_bytes"):
        assert field in shown


@pytest.mark.parametrize("command", ["demo", "run", "doctor"])
def test_the_examples_in_the_help_are_accepted(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(
        importlib.import_module(f"vtfast.{command}"), "run", lambda settings: ran.append(settings)
    )
    examples = examples_of(command)
    for example in examples:
        assert call(*example[1:]).exit_code == 0, example
    assert len(ran) == len(examples) > 0


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"vtfast {vtfast.__version__}\n")


@pytest.mark.parametrize("command", ["demo", "run", "doctor"])
def test_help_loads_nothing_heavy(command: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'PIL', 'triton'}"
    code = (
        "from vtfast.cli import app\n"
        f"app([{command!r}, '--help'], standalone_mode=False)\n"
        f"print('loaded:', *{heavy} & set(sys.modules))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_console_script_and_the_module_are_one_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vtfast": "vtfast.cli:main"}
    script = python("from vtfast.cli import main\nmain()", "demo", "--help")
    code = "import runpy\nsys.argv[0] = 'vtfast'\nrunpy.run_module('vtfast', run_name='__main__')"
    module = python(code, "demo", "--help")
    assert script.stdout == module.stdout != ""
    assert "Usage: vtfast demo" in script.stdout


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


@pytest.mark.parametrize("command", ["demo", "run"])
def test_a_picture_that_could_not_be_written_is_refused_first(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtfast.cli.demo
    import vtfast.cli.run

    for module in (vtfast.cli.demo, vtfast.cli.run):
        monkeypatch.setattr(module, "run", lambda settings: pytest.fail("it ran"))
    link = tmp_path / "kept.png"
    link.symlink_to(tmp_path / "gone" / "kept.png")
    line = refused(call(*(SHOW if command == "run" else ("demo",)), "--out", link))
    assert line == f"error: cannot write {link}: No such file or directory; pass another --out"


def test_trying_whether_a_picture_can_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vtfast.cli.run

    ran = []
    monkeypatch.setattr(vtfast.cli.run, "run", ran.append)
    old = tmp_path / "old.png"
    old.write_text("kept as it is")
    for path in (old, tmp_path / "new.png"):
        assert call(*SHOW, "--out", path).exit_code == 0
    assert len(ran) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]
    assert old.read_text() == "kept as it is"


def test_bad_input_is_refused_before_anything_heavy_is_loaded() -> None:
    code = (
        "from vtfast.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert "unknown preset" in refused(python(code, "demo", "--plan", "nonesuch"))


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_the_cli_extra_one_line_says_what_to_install(name: str) -> None:
    code = f"sys.modules[{name!r}] = None\nfrom vtfast.cli import main\nmain()"
    assert refused(python(code)) == f"error: vtfast needs {name}; pip install 'vtfast[cli]'"


def test_without_matplotlib_one_line_says_what_to_install() -> None:
    code = "sys.modules['matplotlib'] = None\nfrom vtfast.cli import main\nmain()"
    line = refused(python(code, "demo"))
    assert line == "error: the picture needs matplotlib; pip install 'vtfast[plot]'"


def test_an_error_of_the_library_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import vtfast.cli.demo

    def fail(settings: object) -> None:
        raise PlanError("keep=0.9: too much; pass less")

    monkeypatch.setattr(vtfast.cli.demo, "run", fail)
    assert refused(call("demo")) == "error: keep=0.9: too much; pass less"


def test_a_bug_of_ours_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import vtfast.cli.demo

    monkeypatch.setattr(vtfast.cli.demo, "run", lambda settings: 1 // 0)
    result = call("demo")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    import vtfast.cli.demo

    def fail(settings: object) -> None:
        raise interrupt

    monkeypatch.setattr(vtfast.cli.demo, "run", fail)
    result = call("demo")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_what_was_asked_about_is_not_written_over(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for picture in (tmp_path / "mine.png", frames / "0.png"):
        Scene.from_seed(0).picture().save(picture)
        before = picture.read_bytes()
        source = ("--video", frames) if picture.parent == frames else ("--image", picture)
        ask = ("run", "--model", "toy-llava", "--prompt", "read the code .")
        result = call(*ask, *source, "--out", picture)
        assert result.exit_code == 2
        assert "is one of the pictures asked about" in result.stderr
        assert picture.read_bytes() == before
