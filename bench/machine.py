"""What a figure was measured on: hardware, driver, versions, commit, command, and the ceilings.

A ceiling is what this very machine reached in this very process: the bandwidth of a large copy
(bytes read plus bytes written), the rate of a large matrix product on random data, and what a
kernel that does nothing costs. A percentage in a table is of these, never of a data sheet.
"""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from timing import call_samples, graph_samples, summary

from vtfast.kernels._launch import triton

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("kernels", "vtfast", "bench")  # whose sources decide a figure


@triton.jit
def _nothing():
    """A kernel that does nothing: what a launch costs."""


def device_name(device: str) -> str:
    """The card's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} (CPU)"


def sources() -> str:
    """Names the state of everything that decides a figure, also where there is no git."""
    digest = hashlib.sha256()
    for folder in MEASURED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """What git says, else what the environment variable COMMIT says."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        measured = [f"{folder}/*.py" for folder in MEASURED]  # git's * crosses folders
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", *measured], capture_output=True, text=True
        )
    except OSError:
        head = None
    if head is None or head.returncode:
        return os.environ.get("COMMIT") or "unknown: not a git checkout"
    return head.stdout.strip() + (" and changes" if changed.stdout.strip() else "")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def header(device: str) -> dict:
    """The facts of one run, as they go into the JSON."""
    facts = {
        "device": device_name(device),
        "commit": commit(),
        "sources": sources(),
        "command": shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "transformers", "numpy")},
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "driver": _driver(),
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
        }
    else:
        facts["load_average"] = round(os.getloadavg()[0], 2)
        facts["note"] = (
            "processor time of one thread on a machine shared with others, who use the same caches "
            "and memory: ratios mean more than times"
        )
    return facts


def _driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def ceilings(device: str, tiny: bool) -> dict:
    """GB/s of a copy, TFLOP/s of a matrix product, and the time of an empty kernel in ms."""
    on_gpu = device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size, n = (2**20, 128) if tiny else (2**31, 8192) if on_gpu else (2**28, 2048)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.matmul(a, b)}
    samples = call_samples(calls, device, 5, 0.001 if tiny else 0.02)
    copy, product = (summary(samples[name])["median"] for name in calls)
    found = {
        "copy_gb_s": 2 * size / copy / 1e6,
        "matmul_tflop_s": 2 * n**3 / product / 1e9,
        "matmul_dtype": str(dtype).removeprefix("torch."),
    }
    if on_gpu:
        empty = {"empty kernel": lambda: _nothing[(1,)]()}
        _nothing[(1,)]()
        found["empty_kernel_call_ms"] = summary(call_samples(empty, device)["empty kernel"])
        warm, _, _ = graph_samples({"empty kernel": lambda: _nothing[(1,)]()}, [()])
        found["empty_kernel_graph_ms"] = summary(warm["empty kernel"])
    return found
