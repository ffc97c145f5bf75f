"""Where Triton kernels run in this test session; imported before anything imports triton."""

import os
import sys
from pathlib import Path

import torch

# Triton decides at its import whether kernels are compiled for a GPU or interpreted on the CPU.
# VTFAST_TEST_DEVICE: cpu | cuda | auto (cuda where there is one) | sm_80 | sm_90 (compiled for such
# a GPU, and the PTX executed on the CPU: tests/kernels/ptx).
assert "triton" not in sys.modules, "something imports triton before the tests can choose how"
DEVICE = os.environ.get("VTFAST_TEST_DEVICE", "auto")
ARCH = DEVICE if DEVICE.startswith("sm_") else None
if ARCH:
    DEVICE = "cpu"
    cache = Path(__file__).resolve().parents[2] / "build" / "ptx" / "triton"
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache))
if DEVICE == "auto":
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu" and not ARCH
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
else:
    os.environ.pop("TRITON_INTERPRET", None)
