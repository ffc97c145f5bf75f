"""What all ops with a kernel share: registration, and which implementation a call runs."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from devices import DEVICE
from ragged_cases import ragged
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from vtfast.kernels import _distances, _dot_products, _greedy_rounds, _launch, _threshold
from vtfast.kernels import ragged_decode as ragged_decode_module
from vtfast.kernels.compact import compact
from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.image_hash import image_hash
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

# Each op: how it is called, and which tensors of that call the registered op takes.
SEGMENTS = ragged([4, 2], DEVICE)
Q_AND_K = ragged([1, 1], DEVICE), SEGMENTS
X, INDEX = torch.arange(30.0).view(6, 5), torch.tensor([2, 0, 5])
WORDS = torch.tensor([3]), torch.tensor([7, 9]), torch.tensor([1], dtype=torch.int32)

CALLS = {
    "gather_rows": (
        lambda x, index: gather_rows(index, x, x[:, 1], impl="triton")[0],
        lambda: (X, INDEX),
        lambda x, index: (index, [x, x[:, 1]]),
    ),
    "compact": (
        lambda *x: compact(*x[:2], SEGMENTS, [3, 1], (x[2], None), impl="triton")[2],
        lambda: (torch.tensor([0, 2]), torch.tensor([1, 2, 3, 5]), torch.arange(6) * 3),
        lambda *x: (*x[:2], SEGMENTS.cu_seqlens, 6, [x[2]]),
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
    **{
        op.__name__: (
            lambda x, w, op=op: op(x, w, SEGMENTS, [2, 1], impl="triton"),
            lambda: (X + torch.eye(6, 5), X[:, 1]),
            lambda x, w: (x, w, SEGMENTS.cu_seqlens, [4, 2], [2, 1]),
        )
        for op in (dpp_select, coverage_select)
    },
    "image_hash": (
        lambda x, grid: image_hash(x, grid, impl="triton"),
        lambda: (X, torch.tensor([[1, 2, 2], [1, 1, 2]])),
        lambda x, grid: (x, grid),
    ),
    "last_query_scores": (
        lambda q, k: last_query_scores(q, k, SEGMENTS, scale=0.5, impl="triton"),
        lambda: (X.half()[:2, :4, None].expand(2, 4, 8), X.half()[:, :2, None].expand(6, 2, 8)),
        lambda q, k: (q, k, SEGMENTS.cu_seqlens, 4, 0.5),
    ),
    "ragged_attention": (
        lambda q, k: ragged_attention(q, k, k, *Q_AND_K, impl="triton"),
        lambda: (X.half()[:2, :4, None].expand(2, 4, 8), X.half()[:, :2, None].expand(6, 2, 8)),
        lambda q, k: (q, k, k, *(segments.cu_seqlens for segments in Q_AND_K), None, 1, True, 0.5),
    ),
    "ragged_decode": (
        lambda q, k, lengths, starts: ragged_decode(q, k, k, lengths, starts=starts, impl="triton"),
        lambda: (
            X.half()[:2, :4, None].expand(2, 4, 8),
            X.half()[:, :2, None].expand(6, 2, 8),
            torch.tensor([4, 2], dtype=torch.int32),
            torch.tensor([0, 4], dtype=torch.int32),
        ),
        lambda q, k, *_: (q, k, k, None, None, [4, 2, 0, 4], None, 4, 0.5),
    ),
    "random_select": (
        lambda seed, image_hash, stream: random_select(
            SEGMENTS, [2, 1], seed=seed, image_hash=image_hash, stream=stream, impl="triton"
        ),
        lambda: WORDS,
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


SIZED_BY_TENSORS = {
    "gather_rows": lambda rows: gather_rows(rows, X, impl="triton")[0],
    "ragged_decode": lambda rows: ragged_decode(
        HEADS[:2], HEADS[rows], HEADS[rows], LENGTHS, impl="triton"
    ),
}
HEADS, LENGTHS = torch.randn(4, 2, 16), torch.tensor([1, 2], dtype=torch.int32)


@pytest.mark.skipif(DEVICE != "cpu", reason="nothing here depends on the device")
@pytest.mark.parametrize("op", SIZED_BY_TENSORS.values(), ids=SIZED_BY_TENSORS)
def test_two_compilations_serve_every_number_of_rows(op, strict_interpreter):
    """With fullgraph torch gives up at the ninth compilation of a function."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=counter)
    for number in (3, 4, 9, 17, 30):
        rows = torch.arange(number) % 4
        assert torch.equal(compiled(rows), op(rows))
    assert counter.frame_count <= 2  # the first may be for its own number


class Made(TorchDispatchMode):
    """The names of torch's own ops that ran and did more than view a tensor.

    `lift_fresh` counts: it brings in what was made of Python numbers.
    """

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and (name == "lift_fresh" or not func.is_view):
            self.names.add(name)
        return func(*args, **(kwargs or {}))


class Idle:
    """A kernel that runs nothing, so that the code around it can be watched."""

    def __init__(self):
        self.options = []  # of every launch

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **options):
        self.options.append(options or arguments[-1])


@pytest.fixture
def idle(call, monkeypatch):
    """The launcher of the op, and its kernels by name, which run nothing."""
    name, *_ = call
    op_file = "gather" if name == "gather_rows" else name.removesuffix("_gather")
    module = sys.modules[f"vtfast.kernels.{op_file}"]
    greedy = ("diversity_select", "dpp_select", "coverage_select")
    files = [module, _distances] if name in greedy else [module]
    launch_op = module._launch_gather if name.endswith("_gather") else module._launch
    kernels = {}
    for file in files:
        for n in list(vars(file)):
            if n.endswith("_kernel"):
                kernels[n] = Idle()
                monkeypatch.setattr(file, n, kernels[n])
    assert kernels
    ragged_decode_module._launches.cache_clear()  # it keeps kernels
    yield launch_op, kernels
    ragged_decode_module._launches.cache_clear()


def test_a_launch_says_whether_products_are_fused_into_sums(call, idle):
    """Triton's default is a setting of whoever uses the kernels, and changes with its version."""
    (*_, arguments), (launch_op, kernels) = call, idle
    launch_op(*arguments)
    launches = [options for kernel in kernels.values() for options in kernel.options]
    assert launches
    assert all("enable_fp_fusion" in options for options in launches)


def test_distances_are_made_without_fusing_products_into_sums(monkeypatch):
    """1 - dots * a * b is then the same wherever it is computed, and so is a tie."""
    module, kernels = sys.modules["vtfast.kernels.diversity_select"], []
    for file, names in (
        (_distances, ("_norms_kernel", "_distances_kernel")),
        (_dot_products, ("_nearest_others_kernel",)),
        (_greedy_rounds, ("_round_kernel", "_finish_kernel")),
    ):
        for name in names:
            kernels.append(Idle())
            monkeypatch.setattr(file, name, kernels[-1])
    for name in ("dpp_select", "coverage_select"):  # nor are the gains that are compared
        file = sys.modules[f"vtfast.kernels.{name}"]
        for n in [n for n in vars(file) if n.endswith("_kernel")]:
            kernels.append(Idle())
            monkeypatch.setattr(file, n, kernels[-1])
        file._launch(X, X[:, 0], SEGMENTS.cu_seqlens, [4, 2], [2, 1])
    monkeypatch.setattr(module, "_greedy_kernel", Idle())
    launch_diversity(monkeypatch)
    assert all(kernel.options for kernel in kernels)
    assert {options["enable_fp_fusion"] for k in kernels for options in k.options} == {False}


def launch_diversity(monkeypatch, **options):
    """Segments that one program picks from, and segments that are picked from in rounds."""
    module = sys.modules["vtfast.kernels.diversity_select"]
    with monkeypatch.context() as patch:
        module._launch(X, SEGMENTS.cu_seqlens, [4, 2], [2, 1], **options)
        patch.setattr(module, "_LONG", 1)
        x = torch.ones(6, 8, dtype=torch.bfloat16)
        module._launch(x, SEGMENTS.cu_seqlens, [4, 2], [2, 1], **options)


def test_weights_take_no_launch_of_their_own(monkeypatch):
    launched = []
    for file in (
        _distances,
        _dot_products,
        _greedy_rounds,
        sys.modules["vtfast.kernels.diversity_select"],
    ):
        for name in (name for name in vars(file) if name.endswith("_kernel")):
            launched.append(Idle())
            monkeypatch.setattr(file, name, launched[-1])
    launch_diversity(monkeypatch)
    without = [len(kernel.options) for kernel in launched]
    launch_diversity(monkeypatch, weights=torch.ones(6))
    assert all(without)
    assert [len(kernel.options) for kernel in launched] == [2 * number for number in without]


def test_a_repeated_call_sends_nothing_to_the_device_and_reads_nothing(call, idle):
    """So a CUDA graph can capture it: all it does is make memory and copy on the device."""
    (_, op, tensors, arguments), (launch_op, _) = call, idle

    def both_ways():
        op(*tensors)
        launch_op(*arguments)

    both_ways()  # fills the caches of segments and ranges
    with Made() as made:
        both_ways()
    assert made.names <= {"empty", "empty_like", "clone", "zeros"}


def test_an_older_gpu_falls_back_to_pytorch(monkeypatch):
    """Its shared memory is too small for the settings of newer ones."""
    _launch._why_gpu_unsupported.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    gpu = torch.device("cuda", 7)
    assert not _launch.use_triton("topk_select", "auto", gpu)
    with pytest.raises(ValueError, match=r"8\.0 and this GPU has 7\.5; pass impl"):
        _launch.use_triton("topk_select", "triton", gpu)
    _launch._why_gpu_unsupported.cache_clear()


@pytest.fixture
def small_gpu(monkeypatch):
    """A GPU with 99 KiB for a program, as 8.9 and 12.0 have, under a Triton before 3.7."""
    properties = {7: {"max_shared_mem": 99 * 1024}}
    utilities = SimpleNamespace(get_device_properties=properties.__getitem__)
    driver = SimpleNamespace(active=SimpleNamespace(utils=utilities))
    monkeypatch.setattr(_launch.triton.runtime, "driver", driver, raising=False)
    monkeypatch.setattr(_threshold, "_BYTES_OUT", 8)
    _launch.shared_memory.cache_clear()
    yield torch.device("cuda", 7)
    _launch.shared_memory.cache_clear()


def test_what_does_not_fit_a_small_gpu_falls_back_to_pytorch(small_gpu):
    assert _threshold.why_unsupported_length(4096, small_gpu) == ""
    assert "4097 rows, for which Triton before 3.7" in _threshold.why_unsupported_length(
        4097, small_gpu
    )
    assert "than the 99 KiB of this GPU" in _threshold.why_unsupported_length(16384, small_gpu)
    assert (
        _threshold.why_unsupported_length(16384)
        == _threshold.why_unsupported_length(16384, torch.device("cpu"))
        == ""
    )


def test_newer_tritons_need_no_shared_memory_to_store_picks(monkeypatch):
    """So the amount of shared memory is not asked for."""
    monkeypatch.setattr(_threshold, "_BYTES_OUT", 0)
    monkeypatch.setattr(_threshold, "shared_memory", lambda device: 1 / 0)
    assert _threshold.why_unsupported_length(16384, torch.device("cuda", 7)) == ""


@pytest.mark.parametrize("op", ["topk_select", "diversity_select"])
def test_selections_that_store_through_shared_memory_ask_for_their_gpu(op, monkeypatch):
    module = sys.modules[f"vtfast.kernels.{op}"]
    why = "why_unsupported_length"
    monkeypatch.setattr(module, why, lambda longest, device: f"{longest} on {device.type}")
    x = X[:, 1] if op == "topk_select" else X
    with pytest.raises(ValueError, match=f"4 on {DEVICE}"):
        getattr(module, op)(x.to(DEVICE), SEGMENTS, [2, 1], impl="triton")


OUTSIDE = """
import torch
from vtfast.ops import *
from vtfast.kernels.compact import compact
x, index, segments = torch.zeros(3, 2), torch.tensor([0]), Ragged.from_lengths([3], "cpu")
q, k = x[:1, None], x[:, None]
for op, call in {
    "compact": lambda **o: compact(index, index, segments, [3], **o),
    "gather_rows": lambda **o: gather_rows(index, x, **o),
    "random_select": lambda **o: random_select(segments, [1], seed=0, stream=0, **o),
    "topk_select": lambda **o: topk_select(x[:, 0], segments, [1], **o),
    "diversity_select": lambda **o: diversity_select(x, segments, [1], **o),
    "dpp_select": lambda **o: dpp_select(x, x[:, 0], segments, [1], **o),
    "coverage_select": lambda **o: coverage_select(x, x[:, 0], segments, [1], **o),
    "image_hash": lambda **o: image_hash(x, **o),
    "last_query_scores": lambda **o: last_query_scores(q, k, segments, scale=1, **o),
    "ragged_attention": lambda **o: ragged_attention(k, k, k, segments, segments, **o),
    "ragged_decode": lambda **o: ragged_decode(q, k, k, [3], **o),
}.items():
    call(), call(impl="eager")
    try:
        print(op, "ran", call(impl="triton"))
    except RuntimeError as error:
        print(op, error)
"""


def test_every_op_refuses_cpu_tensors_outside_the_interpreter():
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE], env=clean, capture_output=True, text=True
    )
    answers = re.findall(
        r"(\w+) \1: its Triton kernel runs on CUDA tensors, got cpu; move", done.stdout
    )
    assert len(answers) == 11, done.stdout + done.stderr


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_sizes_are_rounded_up_like_tritons_own(n):
    triton = pytest.importorskip("triton")
    assert _launch.cdiv(n, 4) == triton.cdiv(n, 4)
    assert _launch.next_power_of_2(n) == triton.next_power_of_2(n)


def choose(impl="auto", device="cpu", **options):
    return _launch.use_triton("gather_rows", impl, torch.device(device), **options)


def test_auto_takes_the_kernel_on_cuda_and_pytorch_elsewhere():
    assert choose(device="cuda")
    assert not choose(device="cpu")
    assert not choose(device="meta")


def test_auto_falls_back_where_the_kernel_is_unsupported():
    assert not choose(device="cuda", why_unsupported="too long")


def test_auto_warns_once_that_it_falls_back(monkeypatch, recwarn):
    monkeypatch.setattr(_launch, "_warned", set())
    with pytest.warns(RuntimeWarning, match="^gather_rows: too long; falling back to PyTorch"):
        choose(device="cuda", why_unsupported="too long", silent=False)
    choose(device="cuda", why_unsupported="too long", silent=False)
    assert not recwarn.list


def test_eager_is_eager_everywhere():
    assert not choose("eager", "cuda")


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_triton_is_refused_on_devices_it_does_not_know(device):
    with pytest.raises(RuntimeError, match=f"runs on CUDA tensors, got {device}"):
        choose("triton", device)


def test_triton_never_falls_back():
    with pytest.raises(ValueError, match='too long; pass impl="auto" or "eager"'):
        choose("triton", "cuda", why_unsupported="too long")


def test_without_triton_only_the_kernels_are_missing():
    code = (
        "import sys; sys.modules['triton'] = None; import torch\n"
        "from vtfast.ops import gather_rows\n"
        "x, index = torch.zeros(3, 2), torch.tensor([0])\n"
        "assert gather_rows(index, x)[0].shape == (1, 2)\n"
        "try: gather_rows(index, x, impl='triton'); print('ran')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("RuntimeError gather_rows: triton is not installed"), done.stdout
