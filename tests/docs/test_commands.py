"""Every command on the pages is one that the program takes: its options, targets and files exist.

A command is read by the program's own parser and goes no further. `CHECKS` has what is done with
each program; a command of another one fails. What a command does is tested where the command is.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from unittest import mock

import pytest
import typer
from pages import DOCS, PAGES, PROGRAMS, Command, commands, read
from repository import ROOT
from typer.core import TyperGroup

from vtfast import Plan, Prune, cli, presets
from vtfast.methods import registry
from vtfast.vllm.settings import Settings

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Read by programs that are not installed here; where a test runs what can be run of it.
ELSEWHERE = {
    "python -m lmms_eval": "tests/evaluation/test_reproduce.py",
    "vllm serve": "tests/serving",  # of its options, what vtfast is given is read here too
    "accelerate launch": "tests/evaluation/test_evaluate.py",
}


class _Read(Exception):
    """The parser has taken the arguments."""


def _vtfast(words: list[str], whole: bool) -> None:
    name, *given = words
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    assert name in group.commands, f"vtfast has no command {name!r}; it has {list(group.commands)}"
    command = group.commands[name]
    try:
        command.make_context(name, given)
    except typer.Exit:  # --help
        return
    except typer.BadParameter as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise


def _python(words: list[str], whole: bool) -> None:
    """A module or script with argparse, run up to where its arguments are taken."""
    if words[0] == "-c":
        compile(words[1], "python -c", "exec")
        return
    as_module = words[0] == "-m"
    target, *given = words[1:] if as_module else words
    if target == "vtfast":
        _vtfast(given, whole)
        return
    if target == "pytest":
        _pytest(given, whole)
        return

    path = str(ROOT / target)
    if as_module:
        spec = find_spec(target)
        assert spec is not None, f"no module {target}"
        path = str(spec.origin)
    take = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: object) -> None:
        if not whole:
            for action in parser._actions:
                action.required = False
        take(parser)
        raise _Read

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [target, *given]),
        mock.patch.dict("os.environ"),  # some scripts leave interpreting kernels to others
        pytest.raises(_Read),
    ):
        runpy.run_path(path, run_name="__main__")


def _make(words: list[str], whole: bool) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    for word in words:
        name, variable, _ = word.partition("=")
        if variable:
            assert f"$({name})" in MAKEFILE or f"$(or $({name})" in MAKEFILE, f"no variable {name}"
        else:
            assert word in phony.split(), f"the Makefile has no target {word!r}"


def _pip(words: list[str], whole: bool) -> None:
    assert words[0] == "install"
    for extra in re.findall(r"\[(.*)\]", words[1]):
        assert set(extra.split(",")) <= {*EXTRAS}, f"{extra}: the extras are {', '.join(EXTRAS)}"


def _pytest(words: list[str], whole: bool) -> None:
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).exists(), f"no {word}"


def _launcher(words: list[str], whole: bool) -> None:
    """torchrun and accelerate start `vtfast`, which is read."""
    if "-m" in words:
        _python(words[words.index("-m") :], whole)


def _vllm(words: list[str], whole: bool) -> None:
    given = json.loads(words[words.index("--additional-config") + 1])
    Settings.read(given["vtfast"], 28, "qwen2_5_vl")


CHECKS: dict[str, Callable[[list[str], bool], None]] = {
    "vtfast": _vtfast,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "torchrun": _launcher,
    "accelerate": _launcher,
    "vllm": _vllm,
}


def check(command: Command) -> None:
    """Raises AssertionError, or what the parser raises, for a command that cannot be given."""
    words = shlex.split(command.text, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        name = words.pop(0).partition("=")[0]
        assert name in VARIABLES, f"nothing reads {name}"
    if any(command.text.startswith(start) for start in ELSEWHERE) and words[0] != "vllm":
        return
    program, *given = words
    CHECKS[program.removeprefix(".venv/bin/")](given, command.whole)


def _variables() -> set[str]:
    """Environment variables that our code, its tests or PyTorch's threads read."""
    source = "".join(p.read_text() for p in ROOT.glob("vtfast/**/*.py"))
    source += "".join(p.read_text() for p in ROOT.glob("tests/**/conftest.py"))
    source += "".join(p.read_text() for p in ROOT.glob("tests/helpers/*.py"))
    return {*re.findall(r"\"(VTFAST_\w+)\"", source), "OMP_NUM_THREADS"}


VARIABLES = _variables()


ALL = list(dict.fromkeys((p, c) for p in PAGES for c in commands(read(p), p not in DOCS)))


@pytest.fixture(autouse=True)
def in_a_folder_with_a_plan(tmp_path, monkeypatch) -> None:
    """The commands that take a plan's file, or one with methods, read it with their options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(presets, "_OWN", dict(presets._OWN))
    monkeypatch.setattr(sys, "path", list(sys.path))
    Plan([Prune(0, "diversity", 0.5)]).save("plan.json")
    names = re.findall(r'register_method\("([\w-]+)"', read("docs/write-a-method.md"))
    (tmp_path / "mine.py").write_text(
        "import vtfast\n"
        f"for name in {names}:\n"
        "    vtfast.register_method(name, replace=True)(lambda ctx: None)\n"
    )


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{p}: {c.text[:60]}" for p, c in ALL])
def test_every_command_can_be_given(page: str, command: Command, capsys) -> None:
    try:
        check(command)
    except SystemExit:
        pytest.fail(f"{page}: {command.text}\n{capsys.readouterr().err}")


@pytest.mark.parametrize(
    "text",
    [
        "vtfast tune --model toy-llava --no-such-option 1",
        "vtfast no-such-command",
        "vtfast evaluate --model toy-llava --plan no-such-plan",
        "python -m vtfast.toy.tuning no-such-command",
        "python bench/report.py --no-such-option",
        "python bench/no_such_file.py",
        "make no-such-target",
        "make test NO_SUCH_VARIABLE=1",
        'pip install ".[no-such-extra]"',
        "pytest tests/no_such_file.py",
        "VTFAST_NO_SUCH_VARIABLE=1 vtfast doctor",
        "torchrun --nproc-per-node 2 -m vtfast evaluate --no-such-option",
        """vllm serve m --additional-config '{"vtfast": {"no_such_setting": 1}}'""",
        "no-such-program",
    ],
)
def test_the_check_sees_a_wrong_command(text: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(Command(text, True))


def test_to_read_a_command_changes_no_environment(monkeypatch) -> None:
    """bench_launch.py drops TRITON_INTERPRET: the first kernel of another test then failed."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check(Command("python bench/bench_launch.py", True))
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_a_block_may_not_leave_out_what_is_required() -> None:
    check(Command("vtfast sweep --methods random", False))
    with pytest.raises(typer.BadParameter, match="model"):
        check(Command("vtfast sweep --methods random", True))


def test_there_are_commands_of_every_program() -> None:
    given = [re.sub(r"^([A-Z_]+=\S* )*(\.venv/bin/)?", "", command.text) for _, command in ALL]
    assert {text.split()[0] for text in given} == {*PROGRAMS} == {*CHECKS}
    for place in ELSEWHERE.values():
        assert (ROOT / place).exists()
