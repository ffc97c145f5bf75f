"""`bench/bench_launch.py`: every op is timed, and figures without a GPU are marked as such."""

import json
import os
import subprocess
import sys

import pytest
import torch
from repository import ROOT

import vtfast.ops

OPS = set(vtfast.ops.__all__) - {"Ragged"}


def test_times_every_op_beside_an_empty_kernel(tmp_path):
    pytest.importorskip("triton", reason="there is no triton outside Linux")
    result = tmp_path / "launch.json"
    command = [sys.executable, "bench/bench_launch.py", "--rounds", "1", "--json", result]
    cache = {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert torch.cuda.is_available() or found["driver"] == "no driver call"
    names = {row["op"].partition(",")[0] for row in found["rows"]}
    assert names == OPS | {"empty kernel"}
    assert all(0 < row["fastest"] <= row["median"] for row in found["rows"])
