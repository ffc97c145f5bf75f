"""`Relaunch` calls Triton only for launches that Triton might compile anew."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from repository import ROOT

from vtfast.kernels import _relaunch
from vtfast.kernels._relaunch import Relaunch


class Kernel:
    """A stand-in for Triton: counts look-ups, and records the launches of compiled kernels."""

    def __init__(self):
        names = {"x_ptr": False, "index_ptr": False, "n": True, "stride": False, "scale": False}
        self.params = [
            SimpleNamespace(name=name, do_not_specialize=free, is_constexpr=False)
            for name, free in names.items()
        ] + [
            SimpleNamespace(name=name, do_not_specialize=False, is_constexpr=True)
            for name in ("D", "KEYS")
        ]
        self.asked, self.launched = 0, []

    def __getitem__(self, grid):
        def ask(*arguments, **named):
            self.asked += 1
            return self.Compiled(self)

        return ask

    class Compiled:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *arguments: self.kernel.launched.append((grid, arguments))


X, INDEX = torch.zeros(64, dtype=torch.float16), torch.zeros(4, dtype=torch.int32)
GRID, ARGUMENTS = (2, 3, 1), (X, None, 5, 64, 0.5)
CONSTANTS, OPTIONS = {"KEYS": 32, "D": 64}, {"num_warps": 4}


def asked(*calls):
    """How often Triton is asked in these calls of one kernel, each with some inputs changed."""
    kernel = Kernel()
    launch = Relaunch(kernel)
    for change in calls:
        launch(
            change.get("grid", GRID),
            change.get("arguments", ARGUMENTS),
            CONSTANTS | change.get("constants", {}),
            OPTIONS | change.get("options", {}),
        )
    return kernel.asked, kernel.launched


def test_the_second_launch_uses_the_compiled_kernel_with_all_parameters_in_order():
    assert asked({}, {}) == (1, [(GRID, (*ARGUMENTS, 64, 32))])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"grid": (9, 9, 1)}, id="grid"),
        pytest.param({"arguments": (torch.ones_like(X), None, 5, 64, 0.5)}, id="another tensor"),
        pytest.param({"arguments": (X, None, 1, 64, 0.5)}, id="a size that is not specialised"),
        pytest.param({"arguments": (X, None, 5, 64, 0.7)}, id="factor"),
    ],
)
def test_what_triton_compiles_alike_is_not_asked_about(change):
    assert asked({}, change)[0] == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"arguments": (X.float(), None, 5, 64, 0.5)}, id="dtype"),
        pytest.param({"arguments": (X[8:], None, 5, 63, 0.5)}, id="stride"),
        pytest.param({"arguments": (X, INDEX, 5, 64, 0.5)}, id="an index"),
        pytest.param({"arguments": (X, None, 2**31, 64, 0.5)}, id="a size of 64 bits"),
        pytest.param({"arguments": (X.to("meta"), None, 5, 64, 0.5)}, id="device"),
        pytest.param({"constants": {"D": 80}}, id="constant"),
        pytest.param({"options": {"num_warps": 8}}, id="option"),
    ],
)
def test_what_triton_may_compile_anew_is_asked_about(change):
    assert asked({}, change, {}, change)[0] == 2


def test_what_is_not_aligned_is_always_asked_about():
    """Its kernel must not load 16 bytes at a time, and an aligned one should."""
    odd = {"arguments": (X[1:], None, 5, 64, 0.5)}
    assert asked(odd, odd, {}, {}, odd)[0] == 4


def test_what_lies_in_more_than_2_gib_is_always_asked_about_on_amd(monkeypatch):
    """Smaller memory is reached by offsets of 32 bits there."""
    monkeypatch.setattr(_relaunch, "_AMD", True)
    whole = torch.from_numpy(np.zeros(2**30 + 8, dtype=np.float16))  # takes no memory before use
    large = {"arguments": (whole[:64], None, 5, 64, 0.5)}
    assert asked({}, large, {}, large)[0] == 3


def test_interpreted_kernels_are_always_launched_by_triton():
    calls = []
    kernel = {GRID: lambda *arguments, **named: calls.append(arguments)}
    launch = Relaunch(kernel)
    for _ in range(2):
        launch(GRID, ARGUMENTS, CONSTANTS, OPTIONS)
    assert calls == [ARGUMENTS] * 2


def test_the_number_of_kept_kernels_is_bounded(monkeypatch):
    monkeypatch.setattr(_relaunch, "_MAX_ENTRIES", 2)
    calls = [{"arguments": (X, None, 5, stride, 0.5)} for stride in (1, 2, 3, 3, 1)]
    assert asked(*calls)[0] == 4


AT_THE_DRIVER = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from vtfast.kernels import _launch
from vtfast.kernels.ragged_decode import _launch_merge, _launch_split, ragged_decode

launches = []

class Launcher:
    def __init__(self, source, metadata): self.name = source.fn.__name__
    def __call__(self, *arguments): launches.append([self.name, *arguments[:3], *arguments[9:]])

class Driver:
    launcher_cls = Launcher
    class utils:
        def load_binary(*arguments): return 1, 1, 32, 0, 1024
        def get_device_properties(device): return {"max_shared_mem": 227 * 1024}
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
_launch.INTERPRETED = True  # lets tensors of the CPU pass
q, k = torch.zeros(2, 4, 64), torch.zeros(300, 2, 64)
for _ in range(2):
    ragged_decode(q, k, k, [5, 200], impl="triton")
known = [[x if isinstance(x, (int, float, str)) else type(x) for x in args] for args in launches]
assert [name for name, *_ in known] == ["_split_kernel", "_merge_splits_kernel"] * 2, known
assert known[:2] == known[2:], known
assert all(len(relaunch.compiled) == 1 for relaunch in (_launch_split, _launch_merge))
"""


def test_the_driver_gets_the_same_launch_twice():
    """Compiled for a GPU that is not here, with a driver that only listens."""
    pytest.importorskip("triton", reason="there is no triton outside Linux")
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", AT_THE_DRIVER]
    done = subprocess.run(
        command, env=clean | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
