"""Where Triton kernels run in this test session; imported before anything imports triton."""

import os
import sys

import torch

# Triton decides at its import whether kernels are compiled for a GPU or interpreted on the CPU.
# VTFAST_TEST_DEVICE: cpu | cuda | auto (cuda where there is one).
assert "triton" not in sys.modules, "something imports triton before the tests can choose how"
DEVICE = os.environ.get("VTFAST_TEST_DEVICE", "auto")
if DEVICE == "auto":
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
else:
    os.environ.pop("TRITON_INTERPRET", None)
