"""What the tests of whole benches share: a dry run of a GPU command, and a gather of wrong rows."""

import os
import subprocess
import sys
from pathlib import Path

from repository import ROOT

from vtfast.runtime.state import ForwardState


def dry(what: str, out: Path, *options: str) -> subprocess.CompletedProcess:
    """Run `gpu.py` as the Makefile does (vtfast is not installed), but at tiny sizes."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, ROOT / "bench" / "gpu.py", what, "--dry", "--out", str(out), *options],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def wrong_rows(state, index, *tensors):
    """A wrong gather: every token one place too far."""
    return [t.roll(1, dims=-2) for t in _take(state, index, *tensors)]


_take = ForwardState._take
