"""What all ops with a kernel share: registration, and which implementation a call takes."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import DEVICE
from ragged_cases import cut

from vtfast.kernels import launch
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.query_scores import last_query_scores
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

# Each op: how it is called, and which tensors of that call the registered op takes.
SEGMENTS = cut([4, 2], DEVICE)
X, INDEX = torch.arange(30.0).view(6, 5), torch.tensor([2, 0, 5])

CALLS = {
    "gather_rows": (
        lambda x, index: gather_rows(index, x, x[:, 1], impl="triton")[0],
        lambda: (X, INDEX),
        lambda x, index: (index, [x, x[:, 1]]),
    ),
    "topk_select": (
        lambda x: topk_select(x[:, 1], SEGMENTS, [2, 1], impl="triton"),
        lambda: (X,),
        lambda x: (x[:, 1], SEGMENTS.cu_seqlens, [2, 1], 4),
    ),
    "diversity_select": (
        lambda x: diversity_select(x, SEGMENTS, [2, 1], impl="triton"),
        lambda: (X + torch.eye(6, 5),),
        lambda x: (x, SEGMENTS.cu_seqlens, [4, 2], [2, 1]),
    ),
    "last_query_scores": (
        lambda q, k: last_query_scores(q, k, SEGMENTS, scale=0.5, impl="triton"),
        lambda: (X.half()[:2, :4, None].expand(2, 4, 8), X.half()[:, :2, None].expand(6, 2, 8)),
        lambda q, k: (q, k, SEGMENTS.cu_seqlens, 4, 0.5),
    ),
    "random_select": (
        lambda seed, keys, stream: random_select(
            SEGMENTS, [2, 1], seed=seed, keys=keys, stream=stream, impl="triton"
        ),
        lambda: (torch.tensor([3]), torch.tensor([7, 9]), torch.tensor([1], dtype=torch.int32)),
        lambda *words: (SEGMENTS.cu_seqlens, *words, [2, 1], 4),
    ),
}


@pytest.fixture(params=CALLS)
def call(request, device, strict_interpreter):
    """The op, its tensors, and what the registered op is called with."""
    op, make, arguments = CALLS[request.param]
    tensors = tuple(x.to(device) for x in make())
    return request.param, op, tensors, arguments(*tensors)


def test_an_op_keeps_the_rules_of_torch_library(call):
    name, _, _, arguments = call
    torch.library.opcheck(getattr(torch.ops.vtfast, name).default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_op_compiles_without_a_graph_break(call, dynamic):
    _, op, tensors, _ = call
    compiled = torch.compile(op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(*tensors), op(*tensors))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_sizes_are_rounded_up_like_tritons_own(n):
    triton = pytest.importorskip("triton")
    assert launch.cdiv(n, 4) == triton.cdiv(n, 4)
    assert launch.next_power_of_2(n) == triton.next_power_of_2(n)


def choose(impl="auto", device="cpu", **options):
    return launch.use_triton("gather_rows", impl, torch.device(device), **options)


def test_auto_takes_the_kernel_on_cuda_and_the_twin_elsewhere():
    assert choose(device="cuda")
    assert not choose(device="cpu")
    assert not choose(device="meta")


def test_auto_takes_the_twin_where_the_kernel_is_unable():
    assert not choose(device="cuda", unable="too long")


def test_auto_says_once_that_it_takes_the_twin(monkeypatch, recwarn):
    monkeypatch.setattr(launch, "_said", set())
    with pytest.warns(RuntimeWarning, match="^gather_rows: too long; the eager twin does it"):
        choose(device="cuda", unable="too long", silent=False)
    choose(device="cuda", unable="too long", silent=False)
    assert not recwarn.list


def test_eager_is_eager_everywhere():
    assert not choose("eager", "cuda")


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_triton_is_refused_on_devices_it_does_not_know(device):
    with pytest.raises(RuntimeError, match=f"runs on CUDA tensors, got {device}"):
        choose("triton", device)


def test_triton_never_falls_back():
    with pytest.raises(ValueError, match='too long; pass impl="auto" or "eager"'):
        choose("triton", "cuda", unable="too long")


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("", "RuntimeError gather_rows: its Triton kernel runs on CUDA tensors, got cpu; move"),
        ("sys.modules['triton'] = None; ", "RuntimeError gather_rows: triton is not installed"),
        ("os.environ['TRITON_INTERPRET'] = '1'; ", "ran"),
    ],
    ids=["compiled", "not installed", "interpreted"],
)
def test_triton_on_cpu_tensors_runs_in_the_interpreter_or_says_what_to_do(setting, answer):
    code = (
        f"import os, sys; {setting}import torch; from vtfast.ops import gather_rows\n"
        "x, index = torch.zeros(3, 2), torch.tensor([0])\n"
        "assert gather_rows(index, x)[0].shape == (1, 2)\n"
        "try: gather_rows(index, x, impl='triton'); print('ran')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert re.match(re.escape(answer), done.stdout), done.stdout
