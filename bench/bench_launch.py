"""How long a call of each op keeps Python busy, beside a kernel that does nothing.

At 576 tokens most ops are done in a few microseconds, so a call must not take many more. Tensors
are small, because their size does not matter here. On a GPU the calls are launched, and what is
timed is how long the host takes to issue them. Without one nothing is: a driver that does nothing
stands in, so what Triton's launcher and the driver take, some 2 to 4 us a launch, is missing.

    python bench/bench_launch.py [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import no_driver
import torch
import triton

from vtfast.ops import (
    Ragged,
    diversity_select,
    gather_rows,
    last_query_scores,
    random_select,
    topk_select,
)

TARGET = 8.0  # us of a call above as many launches of an empty kernel
CALLS = 50  # a round: few, so that some rounds run undisturbed
LENGTH, KEEP, HEADS, HEAD_SIZE = 64, 32, 4, 64


@triton.jit
def _empty_kernel(x_ptr):
    pass


def calls(batch: int, device: str) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> launches and the call, on `batch` segments. Seeds and keys are on the device."""
    cut, keep = Ragged.from_lengths([LENGTH] * batch, device), [KEEP] * batch
    hidden = torch.zeros(cut.total, HEAD_SIZE, dtype=torch.bfloat16, device=device)
    positions = torch.zeros(cut.total, dtype=torch.int64, device=device)
    scores = torch.zeros(cut.total, device=device)
    index = torch.zeros(KEEP * batch, dtype=torch.int32, device=device)
    words = {
        "seed": torch.zeros(1, dtype=torch.int64, device=device),
        "image_hash": torch.zeros(batch, dtype=torch.int64, device=device),
        "stream": torch.zeros(1, dtype=torch.int32, device=device),
    }
    q = torch.zeros(batch, HEADS, HEAD_SIZE, dtype=torch.bfloat16, device=device)
    k = torch.zeros(cut.total, HEADS, HEAD_SIZE, dtype=torch.bfloat16, device=device)
    triton_ = {"impl": "triton"}
    return {
        "empty kernel": (1, lambda: _empty_kernel[(1,)](hidden)),
        "gather_rows, 1 tensor": (1, lambda: gather_rows(index, hidden, **triton_)),
        "gather_rows, 4 tensors": (
            1,
            lambda: gather_rows(index, hidden, hidden, hidden, positions, **triton_),
        ),
        "random_select": (1, lambda: random_select(cut, keep, **words, **triton_)),
        "topk_select": (1, lambda: topk_select(scores, cut, keep, **triton_)),
        "diversity_select": (3, lambda: diversity_select(hidden, cut, keep, **triton_)),
        "last_query_scores": (2, lambda: last_query_scores(q, k, cut, scale=1.0, **triton_)),
    }


def microseconds(call: Callable[[], object], device: str, rounds: int) -> dict[str, float]:
    """Of one call: the fastest round, which no other program disturbed, and the median."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call()  # compiles
    samples = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter() - start) / CALLS * 1e6)
    return {"fastest": min(samples), "median": statistics.median(samples)}


def measure(device: str, rounds: int) -> list[dict]:
    rows: list[dict] = []
    for batch in (1, 8):
        for name, (launches, call) in calls(batch, device).items():
            row = {"batch": batch, "op": name, "launches": launches}
            rows.append(row | microseconds(call, device, rounds))
    return rows


def header(device: str) -> dict[str, str]:
    names = [line for line in _cpu_info() if line.startswith("model name")]
    return {
        "driver": torch.cuda.get_device_name() if device == "cuda" else "no driver call",
        "cpu": names[0].split(":")[1].strip() if names else platform.machine(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "command": " ".join(["python", *sys.argv]),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def as_text(rows: list[dict]) -> str:
    """us of a call, of its launches alone, and what the op adds to them."""
    empty = {row["batch"]: row["fastest"] for row in rows if row["op"] == "empty kernel"}
    lines = ["batch  op                      fastest  median  launches  above empty kernels, us"]
    for row in rows:
        above = row["fastest"] - row["launches"] * empty[row["batch"]]
        lines.append(
            f"{row['batch']:5d}  {row['op']:22s}  {row['fastest']:7.1f} {row['median']:7.1f}"
            f"  {row['launches']:8d}  {above:5.1f} {'ok' if above <= TARGET else 'over'}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=200, help="of 50 calls each (default 200)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        no_driver.stand_in("sm_90")
    facts = header(device)
    print("  ".join(f"{name}: {value}" for name, value in facts.items()), file=sys.stderr)
    rows = measure(device, options.rounds)
    print(as_text(rows))
    if options.json:
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
