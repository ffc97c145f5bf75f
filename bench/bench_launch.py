"""How long a call of each op keeps Python busy, beside a kernel that does nothing.

At 576 tokens most ops run for a few microseconds, so a call must not take much longer. On a GPU
the calls are launched, and the host's time to issue them is measured. Without one, a
stand-in driver does nothing: the 2 to 4 us of Triton's launcher and the driver are missing.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import machine
import torch
from no_driver import stand_in
from op_calls import op_calls
from report import aligned

TARGET = 8.0  # us that a call may take above its launches of an empty kernel
CALLS = 50  # per round: few, so that some rounds run undisturbed
LAUNCHES = {"diversity_select": 3, "dpp_select": 3, "coverage_select": 4,
            "last_query_scores": 2, "ragged_decode": 2}  # fmt: skip


def measure(device: str, rounds: int) -> list[dict]:
    """Microseconds of one call: of the fastest round, which nothing disturbed, and the median."""
    wait, rows = torch.cuda.synchronize if device == "cuda" else lambda: None, []
    empty = {"empty kernel": (machine.empty_kernel[(1,)], [])}
    for name, (call, tensors) in {**empty, **op_calls(device, "triton")}.items():
        samples = []
        for _ in range(rounds + 1):
            wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                call(*tensors)
            samples.append((time.perf_counter() - start) / CALLS * 1e6)
        median = machine.summary(samples[1:])["median"]  # the first compiles
        row = {"op": name, "launches": LAUNCHES.get(name.partition(",")[0], 1), "median": median}
        rows.append(row | {"fastest": min(samples[1:])})
    return rows


def table(rows: list[dict]) -> str:
    """us of a call, of its launches alone, and what the op adds to them."""
    lines = [["op", "fastest us", "median us", "launches", "above empty kernels, us", ""]]
    for row in rows:
        above = row["fastest"] - row["launches"] * rows[0]["fastest"]
        times = [f"{row['fastest']:.1f}", f"{row['median']:.1f}", str(row["launches"])]
        lines.append([row["op"], *times, f"{above:.1f}", "ok" if above <= TARGET else "over"])
    return aligned(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, default=200, help="of 50 calls each (default 200)")
    options, device = parser.parse_args(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    facts = machine.header(device)
    if device == "cpu":
        stand_in("sm_90")
        facts["driver"] = "no driver call"
    rows = measure(device, options.rounds)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
