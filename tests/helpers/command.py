"""Calling `vtfast` from tests, and what a refusal has to look like."""

import copy
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from repository import ROOT
from rich.console import Console
from typer.testing import CliRunner

from vtfast import cli
from vtfast.inputs.checkpoints import Checkpoint
from vtfast.toy.model import load


def call(*arguments: object, charset: str = "utf-8", columns: int = 100, terminal: bool = False):
    """`vtfast` with these arguments, in this process; only with `terminal` it draws progress."""
    env = {"COLUMNS": str(columns), "NO_COLOR": "1"} | ({"TTY_COMPATIBLE": "1"} if terminal else {})
    runner = CliRunner(charset=charset)
    with mock.patch("vtfast.toy.model.load", bundled):
        return runner.invoke(cli.app, [str(a) for a in arguments], env=env, prog_name="vtfast")


def answered(*arguments: object, **options: Any):
    """The same, where it has to succeed."""
    result = call(*arguments, **options)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result


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


def checkpoint(name: str) -> Checkpoint:
    """What a command finds under the name of a bundled model."""
    from vtfast.cli._checkpoints import find

    with mock.patch("vtfast.toy.model.load", bundled):
        return find(name, Console(quiet=True))


_read = functools.cache(load)


def bundled(name: str = "llava", dtype: None = None) -> tuple[Any, Any]:
    """A copy of a bundled model that is read from the disk once, and its processor."""
    model, processor = _read(name)
    return copy.deepcopy(model), processor
