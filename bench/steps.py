"""Steps of a long command: each a process of its own, with a limit, a log and a verdict."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    """How many seconds are left since the program began."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


class Log:
    """The folder of logs, one a step."""

    def __init__(self, out: Path):
        self.folder = out / "logs"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '_', name)}.log"


def run_step(
    name: str,
    command: Sequence[str],
    seconds: float,
    log: Log,
    env: Mapping[str, str] | None = None,
) -> dict:
    """Run a command from the checkout, its output in a log; ended with its children at its limit.

    Returns its name, `status` ("passed", "failed" or "out of time"), exit `code`, `seconds`, and
    the last line it said.
    """
    began = time.monotonic()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **(env or {}), "PYTHONPATH": os.pathsep.join(paths)}
    print(f"{name}: ", end="", file=sys.stderr, flush=True)
    with log.path(name).open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    spent = round(time.monotonic() - began, 1)
    status = {0: "passed", None: "out of time"}.get(code, "failed")
    said = log.path(name).read_text(errors="replace").strip().splitlines()
    print(f"{status}, {spent} s", file=sys.stderr, flush=True)
    return {
        "name": name,
        "status": status,
        "code": code,
        "seconds": spent,
        "said": said[-1][:300] if said else "",
    }
