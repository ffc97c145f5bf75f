"""`Repeat` asks Triton once for a compiled kernel; `Decoder` decodes layer after layer with it."""

import copy
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from devices import DEVICE
from repository import ROOT

from vtfast.kernels import _repeat
from vtfast.kernels._repeat import Repeat
from vtfast.kernels.ragged_decode import Decoder, ragged_decode

X, GRID, CONSTANTS = torch.zeros(64, dtype=torch.float16), (2, 3, 1), {"KEYS": 32, "D": 64}


class Kernel:
    """A stand-in for Triton: counts look-ups, and records the launches of compiled kernels."""

    def __init__(self):
        names = {"x_ptr": False, "index_ptr": False, "n": False, "D": True, "KEYS": True}
        self.params = [SimpleNamespace(name=n, is_constexpr=c) for n, c in names.items()]
        self.asked, self.launched = [], []

    def __getitem__(self, grid):
        def ask(*arguments, **named):
            self.asked.append((grid, arguments, named))
            return {grid: lambda *everything: self.launched.append(everything)}

        return ask


def repeated(*first_arguments):
    """A kernel after one launch for each of these first arguments."""
    kernel = Kernel()
    launch = Repeat(kernel, GRID, CONSTANTS, {"num_warps": 4})
    for x in first_arguments:
        launch(x, None, 5)
    return kernel


def test_the_second_launch_uses_the_compiled_kernel_with_all_parameters_in_order():
    other = torch.ones_like(X)
    kernel = repeated(X, other)
    assert kernel.asked == [(GRID, (X, None, 5), {**CONSTANTS, "num_warps": 4})]
    [launched] = kernel.launched
    assert launched[0] is other
    assert launched[1:] == (None, 5, 64, 32)


def test_what_is_not_aligned_is_always_asked_about():
    """Its kernel must not load 16 bytes at a time, and an aligned one should."""
    assert len(repeated(X[1:], X[1:], X, X, X[1:]).asked) == 4


def test_amd_is_always_asked(monkeypatch):
    """Of tensors in less than 2 GiB it makes another kernel."""
    monkeypatch.setattr(_repeat, "_ALWAYS_ASK", True)
    assert len(repeated(X, X).asked) == 2


def test_interpreted_kernels_are_always_launched_by_triton():
    calls = []
    launch = Repeat({GRID: lambda *arguments, **named: calls.append(arguments)}, GRID, {}, {})
    for _ in range(2):
        launch(X, 5)
    assert calls == [(X, 5)] * 2


# -- Decoder: the same as the public op, whatever came before -------------------------------------

LENGTHS, STARTS, HEADS, SIZE = [5, 0, 300], [2, 7, 9], (6, 2), 32


def layer(seed, *, shift=0, dtype=torch.float16):
    """Queries, keys and values of a layer; keys and values `shift` elements off 16 bytes."""
    make = torch.Generator().manual_seed(seed)
    q = torch.randn(3, HEADS[0], SIZE, generator=make)
    flat = [torch.randn(320 * HEADS[1] * SIZE + shift, generator=make) for _ in range(2)]
    flat = [t.to(DEVICE, dtype)[shift:] for t in flat]
    return q.to(DEVICE, dtype), *(t.view(320, HEADS[1], SIZE) for t in flat)


def decoder(lengths=LENGTHS, longest=310):
    spans = (torch.tensor(n, dtype=torch.int32, device=DEVICE) for n in (lengths, STARTS))
    return Decoder(*spans, longest)


def public(q, k, v, lengths=LENGTHS):
    return ragged_decode(q, k, v, lengths, starts=STARTS, scale=0.2, impl="triton")


@pytest.mark.usefixtures("poisoned_memory")
def test_layers_one_after_another_get_what_the_public_op_gives_them():
    """At other addresses, of other alignment, dtype and head layout."""
    decode = decoder()
    layers = [layer(0), layer(1), layer(2, shift=1), layer(3), layer(4, dtype=torch.float32)]
    q, k, v = layer(5)
    layers.append((q[:, ::3], k, v))
    for q, k, v in layers:
        assert torch.equal(decode(q, k, v, 0.2), public(q, k, v))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("longest", [0, 1, 128])
def test_one_split_needs_no_merge_and_gives_the_same_bits(longest):
    """Nobody has room for a second split; the public op is asked to make one."""
    lengths, (q, k, v) = [min(n, longest) for n in LENGTHS], layer(0)
    decode = decoder(lengths, longest)
    on_device = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    starts = torch.tensor(STARTS, dtype=torch.int32, device=DEVICE)
    split = ragged_decode(q, k, v, on_device, starts=starts, scale=0.2, impl="triton")
    assert torch.equal(decode(q, k, v, 0.2), split)
    [(*_, states)] = decode._ready.values()
    assert states is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_reads_lengths_of_its_own(copied):
    q, k, v = layer(0)
    decode = decoder()
    decode(q, k, v, 0.2)
    other = copied(decode)
    decode._ranges[0].add_(1)
    assert torch.equal(other(q, k, v, 0.2), public(q, k, v))


AT_THE_DRIVER = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from vtfast.kernels import _launch
from vtfast.kernels.ragged_decode import Decoder

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
q, k = torch.zeros(2, 4, 64), torch.zeros(300, 2, 64)
decode = Decoder(*(torch.tensor(n, dtype=torch.int32) for n in ([5, 200], [0, 5])), 200)
for _ in range(2):
    decode(q, k, k, 0.125)
known = [[x if isinstance(x, (int, float, str)) else type(x) for x in args] for args in launches]
assert [name for name, *_ in known] == ["_split_kernel", "_merge_splits_kernel"] * 2, known
assert known[:2] == known[2:], known
[(split, merge, states)] = decode._ready.values()
assert split._compiled and merge._compiled
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
