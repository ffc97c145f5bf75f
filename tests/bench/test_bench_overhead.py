"""`bench/bench_overhead.py`: its file is complete after every case; the host cost is counted."""

import json
import os
import re
import subprocess
import sys

from repository import ROOT


def test_the_file_is_complete_after_every_case_and_is_continued(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "bench/bench_overhead.py", "--tiny", "--rounds", "1"]
    command += ["--only", "b1, divprune 0.1", "--json", str(file)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "divprune 0.1" in first.stdout
    assert "us a decoded token" in first.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [r["case"] for r in rows] == ["b1, divprune 0.1", "4 layers of 64"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert json.loads(file.read_text())["rows"] == rows


def test_the_host_cost_of_a_decoding_step_is_counted_in_every_layout(tmp_path):
    command = [sys.executable, "bench/bench_overhead.py", "--host", "--tiny", "--rounds", "1"]
    cache = {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert "operators a layer" in head
    names = ["unpatched", "padded", "packed", "packed, Triton (nothing launched)"]
    assert [re.split("  +", row)[0] for row in rows] == names
    assert all(float(re.split("  +", row)[1]) > 10 for row in rows)
