"""vLLM without the plugin, in a process of its own: a plugin is loaded once for all engines."""

import json
import os
import subprocess
import sys

import pytest

_STOCK = """
import json, sys
from vllm_engines import ask, engine, requests
with engine(sys.argv[2]) as made:
    found = ask(made, requests(sys.argv[1]))
json.dump(found, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="session")
def stock_answers(tmp_path_factory):
    """Answers of vLLM's own class to the requests of a family."""
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
