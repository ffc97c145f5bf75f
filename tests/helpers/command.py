"""Calling `vtfast` from tests, and what a refusal has to look like."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from repository import ROOT
from typer.testing import CliRunner

from vtfast import cli


def call(*arguments: object, charset: str = "utf-8", columns: int = 100):
    """`vtfast` with these arguments, in this process; its stdout is no terminal."""
    env = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    runner = CliRunner(charset=charset)
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
