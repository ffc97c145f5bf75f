"""The ops where NumPy is not installed, as PyTorch does not require it (docs/hub.md)."""

import os
import subprocess
import sys

import pytest
import torch
from devices import DEVICE
from op_calls import op_calls
from repository import ROOT

RUN = (
    "import sys\nsys.modules['numpy'] = None\n"
    "import torch\nfrom op_calls import op_calls\nfrom vtfast.ops import Ragged\n"
    "calls = op_calls('cpu', 'eager').items()\n"
    "torch.save({name: call(*tensors) for name, (call, tensors) in calls}, sys.argv[1])\n"
    "Ragged.from_lengths([True], 'cpu')"
)


@pytest.mark.skipif(DEVICE != "cpu", reason="nothing here depends on the device")
def test_every_op_gives_the_same_without_numpy(tmp_path) -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/helpers", ROOT / "bench")))
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path / "results"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "TypeError: lengths must hold host ints, got True" in done.stderr, done.stderr
    results = torch.load(tmp_path / "results")
    for name, (call, tensors) in op_calls("cpu", "eager").items():
        torch.testing.assert_close(results.pop(name), call(*tensors), msg=name)
    assert not results
