"""Time calls, in milliseconds and in alternating rounds, and record the facts of the machine.

- call: plain calls; on a GPU by `triton.testing.do_bench`, which clears the L2 cache before each,
  on a CPU in processor time of this process, which leaves out waiting on a busy machine;
- warm: replays of a CUDA graph of several calls on the same inputs, without gaps between launches;
- cold: the same over several sets of inputs in turn, together three times the L2 cache. If 64 sets
  are not enough, the graph first reads scratch memory, and the time of that is subtracted.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils import collect_env

from vtfast.kernels._launch import triton

Samples = dict[str, list[float]]
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "helpers"))  # oracles, parity checks and models
MEASURED = ("kernels", "vtfast", "bench")  # folders whose sources a figure depends on
MAX_SETS = 64
_LEAST_ROUNDS, _ENOUGH_MS = 3, 1e3
_GRAPH_CALLS = 10  # in a warm graph: a replay itself costs some microseconds
_GRAPH_MS, _GRAPH_ROUNDS = 2.0, 15  # of replays between two events


@triton.jit
def empty_kernel():
    """Does nothing: shows what a launch costs."""


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    if len(samples) == 1:
        return dict.fromkeys(("median", "p20", "p80"), samples[0])
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return {"median": statistics.median(samples), "p20": deciles[1], "p80": deciles[7]}


def clock_of(device: str) -> Callable[[], float]:
    """A clock in seconds: host time once the GPU is idle; on a CPU, this process's CPU time."""
    if device == "cpu":
        return time.process_time
    return lambda: torch.cuda.synchronize() or time.perf_counter()


def call_samples(calls: dict, device: str, rounds: int = 9, seconds: float = 0.02) -> Samples:
    """One sample per call and round, each over about `seconds`; slow calls get fewer rounds."""
    timers = {name: _timer(call, device, seconds) for name, call in calls.items()}
    samples: Samples = {name: [] for name in calls}
    for number in range(rounds):
        for name, timer in timers.items():
            if number < _LEAST_ROUNDS or sum(samples[name]) < _ENOUGH_MS:
                samples[name].append(timer())
    return samples


def _timer(call: Callable[[], object], device: str, seconds: float) -> Callable[[], float]:
    """Takes one sample of a call; warms up before the first."""
    if device == "cuda":
        from triton.testing import do_bench

        return lambda: do_bench(call, 250 * seconds, 1e3 * seconds, return_mode="median")

    def timed(repeats: int) -> float:
        start = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - start) * 1e3 / repeats

    call()
    repeats = 1
    while (ms := timed(repeats)) * repeats < 250 * seconds:
        repeats *= 2
    return lambda: timed(max(1, round(1e3 * seconds / ms)))


def sets_needed(nbytes: int, cache: int) -> int:
    """How many sets of `nbytes` bytes make three times the cache, at most `MAX_SETS`."""
    return min(MAX_SETS, max(2, -(-3 * cache // max(1, nbytes))))


def graph_samples(calls: dict, sets: Sequence[tuple], scratch: torch.Tensor | None = None):
    """Warm and cold samples of calls that take one set of inputs; cold ones need two sets or more.

    Returns warm, cold, and the reasons of the calls that cannot be captured and are in neither.
    """
    flush = [] if scratch is None else [lambda: scratch.sum()]
    warm, cold, refused = {}, {}, {}
    for name, call in calls.items():
        try:
            warm[name] = _captured([lambda call=call: call(*sets[0])] * _GRAPH_CALLS)
            each = [lambda call=call, inputs=inputs: call(*inputs) for inputs in sets]
            cold[name] = _captured(flush + each)
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises if more than the capture has failed
            warm.pop(name, None)
            refused[name] = str(error).strip().split("\n")[0]
    cold = cold if len(sets) > 1 else {}
    flushing = statistics.median(_replayed({"": _captured(flush)})[""]) if flush and cold else 0.0
    warm_ms = {n: [ms / _GRAPH_CALLS for ms in s] for n, s in _replayed(warm).items()}
    cold_ms = {n: [(ms - flushing) / len(sets) for ms in s] for n, s in _replayed(cold).items()}
    return warm_ms, cold_ms, refused


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """A graph of these calls. Raises RuntimeError where one of them cannot be captured."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    # A capture that fails leaves its stream as the current one; the outer context restores ours.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _replayed(graphs: dict[str, torch.cuda.CUDAGraph]) -> Samples:
    """Milliseconds of one replay of each, in alternating rounds."""

    def timed(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats

    for graph in graphs.values():
        graph.replay()
    repeats = {name: round(_GRAPH_MS / max(1e-3, timed(g, 3))) for name, g in graphs.items()}
    samples: Samples = {name: [] for name in graphs}
    for _ in range(_GRAPH_ROUNDS):
        for name, graph in graphs.items():
            samples[name].append(timed(graph, max(1, min(200, repeats[name]))))
    return samples


def device_name(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    said = re.search(r"Model name:\s*(.+)", collect_env.get_cpu_info(collect_env.run) or "")
    return f"{said[1] if said else platform.machine()} (CPU)"


def same(run: dict, facts: dict) -> bool:
    """Whether figures of an earlier run belong to this device and these sources."""
    return all(run[key] == facts[key] for key in ("device", "sources"))


def sources() -> str:
    """A digest of all sources that figures depend on; it identifies their state without git too."""
    digest = hashlib.sha256()
    for path in sorted(path for name in MEASURED for path in (ROOT / name).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """The commit, from git or else from the environment variable COMMIT."""
    git, files = ["git", "-C", str(ROOT)], [f"{name}/*.py" for name in MEASURED]
    code, head, _ = collect_env.run(shlex.join([*git, "rev-parse", "HEAD"]))
    if code:
        return os.environ.get("COMMIT") or "unknown: not a git checkout"
    _, changed, _ = collect_env.run(shlex.join([*git, "status", "--porcelain", "--", *files]))
    return head + (" and changes" if changed else "")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def command() -> str:
    """The command line, without any path that only this machine has."""
    words = ["python"]
    for argument in sys.argv:
        option, equals, value = argument.rpartition("=")
        if (path := Path(value)).is_absolute():
            inside = path.is_relative_to(ROOT)
            value = path.relative_to(ROOT).as_posix() if inside else path.name
        words.append(option + equals + value)
    return shlex.join(words)


def header(device: str) -> dict:
    """The facts of one run, as they go into the JSON."""
    facts = {"device": device_name(device), "commit": commit(), "sources": sources(),
             "command": command(), "started": datetime.now(UTC).isoformat(timespec="seconds"),
             "python": platform.python_version(), "threads": torch.get_num_threads()}  # fmt: skip
    facts |= {name: version(name) for name in ("torch", "triton", "transformers", "numpy")}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        driver = collect_env.get_nvidia_driver_version(collect_env.run) or "unknown"
        return facts | {"driver": driver, "cuda": torch.version.cuda, "l2_bytes": gpu.L2_cache_size,
                        "multiprocessors": gpu.multi_processor_count,
                        "memory_bytes": gpu.total_memory}  # fmt: skip
    note = (
        "processor time of one thread on a machine shared with others, who use the same caches and "
        "memory: ratios mean more than times"
    )
    return facts | {"load_average": round(os.getloadavg()[0], 2), "note": note}


def ceilings(device: str, tiny: bool = False) -> dict:
    """What this machine reaches in this process: GB/s of a large copy (bytes read plus written),
    TFLOP/s of a large matrix product, and the milliseconds of an empty kernel."""
    on_gpu, dtype = device == "cuda", torch.bfloat16 if device == "cuda" else torch.float32
    size, n = (2**20, 128) if tiny else (2**31, 8192) if on_gpu else (2**28, 2048)
    source, target = torch.randn(2, size // 4, device=device)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.matmul(a, b)}
    samples = call_samples(calls, device, 5, 0.001 if tiny else 0.02)
    copy, product = (summary(samples[name])["median"] for name in calls)
    found = {"copy_gb_s": 2 * size / copy / 1e6, "matmul_tflop_s": 2 * n**3 / product / 1e9}
    found["matmul_dtype"] = str(dtype).removeprefix("torch.")
    if on_gpu:
        empty = {"": empty_kernel[(1,)]}
        warm, _, _ = graph_samples(empty, [()])
        found["empty_kernel_call_ms"] = summary(call_samples(empty, device)[""])
        found["empty_kernel_graph_ms"] = summary(warm[""])
    return found
