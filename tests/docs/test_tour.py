"""The notebook runs from top to bottom without a network, and shows what it prints."""

import json
import os
import subprocess
import sys

import pytest
from repository import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
CELLS = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
# Runs the cells and prints, as JSON, what each of them printed.
RUN = """
import contextlib, io, json, socket, sys
import matplotlib
matplotlib.use("Agg")
def refuse(*_):
    raise OSError("the notebook asks for the network")
socket.socket.connect = refuse
names, printed = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(source, names)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


def shown(cell: dict) -> str:
    """What the notebook shows that a cell printed."""
    found = [out for out in cell["outputs"] if out["output_type"] == "stream"]
    return "".join("".join(out["text"]) for out in found if out["name"] == "stdout")


@pytest.fixture(scope="module")
def printed() -> list[str]:
    sources = json.dumps(["".join(cell["source"]) for cell in CELLS])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=sources, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_prints_what_it_shows(printed):
    """But for the table of `tune`, which has times."""
    for cell, text in zip(CELLS, printed, strict=True):
        if "vtfast.tune" not in "".join(cell["source"]):
            assert text == shown(cell)


def test_it_was_run_in_order_and_has_its_pictures():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [out for cell in CELLS for out in cell["outputs"]]
    assert [out for out in outputs if out["output_type"] == "error"] == []
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 5
    assert not any(out.get("name") == "stderr" for out in outputs)


def test_the_answers_it_shows_are_of_use(printed):
    """It asks with all tokens and with half of them, and both answers are right."""
    assert len([text for text in printed if text.strip()]) >= 5
    asked = next(text for text in printed if "half of them" in text)
    right = printed[1].partition("→")[2].strip()
    assert asked.count(right) == 2
