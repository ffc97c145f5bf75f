"""`bench_overhead.py` and `bench_host.py`: their files are complete after every case."""

import json
import os
import subprocess
import sys

from repository import ROOT


def run(script, file, *arguments):
    """The table that a bench prints, and the rows of its file."""
    command = [sys.executable, f"bench/{script}.py", "--tiny", *arguments, "--json", str(file)]
    cache = {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())["rows"]


def test_the_file_is_complete_after_every_case_and_is_continued(tmp_path):
    how = ("--rounds", "1", "--only", "b1, divprune 0.1")
    table, rows = run("bench_overhead", tmp_path / "found.json", *how)
    assert "divprune 0.1" in table
    assert [(r["case"], r["auto"]) for r in rows] == [("b1, divprune 0.1", "padded")]
    assert run("bench_overhead", tmp_path / "found.json", *how)[1] == rows


def test_the_host_cost_is_measured_in_every_layout_of_alike_and_unlike_batches(tmp_path):
    table, rows = run("bench_host", tmp_path / "found.json", "--rounds", "2")
    assert "a decoding step" in table
    assert "a prefill" in table
    assert [row["case"] for row in rows] == ["1 alike", "2 alike", "2 unlike"]
    assert [row["auto layout"] for row in rows] == ["padded", "padded", "packed"]
    assert [row["padding"] for row in rows] == [0, 0, 1 - (34 + 66) / 132]
    assert all(row["packed, Triton operators"] > 10 for row in rows)
