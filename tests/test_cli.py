"""The command `vtfast`: help, versions, and one line where the user is at fault. No model runs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from repository import ROOT
from typer.testing import CliRunner

import vtfast
from vtfast import cli
from vtfast.errors import PlanError
from vtfast.presets import PRESETS


def call(*arguments: str):
    """`vtfast` with these arguments, in this process."""
    env = {"COLUMNS": "100", "NO_COLOR": "1"}
    return CliRunner().invoke(cli.app, arguments, env=env, prog_name="vtfast")


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter that finds vtfast."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def refused(result) -> str:
    """The one line on stderr that a refusal consists of; checks that it is one."""
    code = result.returncode if hasattr(result, "returncode") else result.exit_code
    assert code == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# Help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_vtfast_alone_prints_help(arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    assert "Usage: vtfast" in result.stdout
    assert "demo" in result.stdout


def test_help_of_demo_teaches_by_examples() -> None:
    lines = [line.strip() for line in call("demo", "--help").stdout.splitlines()]
    examples = [line.partition("#")[0].split() for line in lines if line.startswith("vtfast demo")]
    assert len(examples) >= 3
    used = {word for example in examples for word in example if word.startswith("--")}
    assert {"--plan", "--keep", "--json", "--scene-seed"} <= used


def test_help_of_demo_names_every_option_and_preset() -> None:
    shown = call("demo", "--help").stdout
    options = ("plan", "keep", "scene-seed", "seed", "out", "json", "no-timing")
    assert [name for name in options if f"--{name} " not in shown] == []
    assert [preset for preset in PRESETS if preset not in shown] == []


def test_the_examples_in_the_help_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    import vtfast.demo

    ran = []
    monkeypatch.setattr(vtfast.demo, "run", ran.append)
    shown = call("demo", "--help").stdout.splitlines()
    lines = [line.strip() for line in shown if line.strip().startswith("vtfast demo")]
    for line in lines:
        command = line.partition("#")[0].partition("|")[0].split()
        assert call(*command[1:]).exit_code == 0, line
    assert len(ran) == len(lines) > 0


def test_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"vtfast {vtfast.__version__}\n")


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'PIL', 'triton'}"
    code = (
        "from vtfast.cli import app\n"
        "app(['demo', '--help'], standalone_mode=False)\n"
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dmo"], "No such command 'dmo'"),
        (["demo", "--kep", "0.5"], "--keep"),
        (["demo", "surplus"], "surplus"),
        (["demo", "--plan"], "--plan"),
        (["demo", "--plan", "nonesuch"], "unknown preset 'nonesuch'; pass random, fastv"),
        (["demo", "--plan", "pyramiddrop"], "not in this version"),
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
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    assert says in refused(call(*arguments))


def test_out_may_not_be_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "kept.png"
    folder.mkdir()
    assert "is a folder; pass the name of a file" in refused(call("demo", "--out", str(folder)))


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
    import vtfast.demo

    def fail(settings: object) -> None:
        raise PlanError("keep=0.9: too much; pass less")

    monkeypatch.setattr(vtfast.demo, "run", fail)
    assert refused(call("demo")) == "error: keep=0.9: too much; pass less"


def test_a_bug_of_ours_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import vtfast.demo

    monkeypatch.setattr(vtfast.demo, "run", lambda settings: 1 // 0)
    result = call("demo")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, typer.Abort])
def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    import vtfast.demo

    def fail(settings: object) -> None:
        raise interrupt

    monkeypatch.setattr(vtfast.demo, "run", fail)
    result = call("demo")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")
