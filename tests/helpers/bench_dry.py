"""What the tests of whole benches share: a dry run of a script, and a way to gather wrong rows."""

import os
import subprocess
import sys
from pathlib import Path

from repository import ROOT

from vtfast.runtime.state import ForwardState


def dry(script: str, out: Path, *options: str) -> subprocess.CompletedProcess:
    """The script as the Makefile runs it, but for the sizes: without vtfast being installed."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, ROOT / "bench" / script, "--dry", "--out", str(out), *options],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def one_more(pass_, index, *tensors):
    return [t.roll(1, dims=-2) for t in _take(pass_, index, *tensors)]


_take = ForwardState._take
