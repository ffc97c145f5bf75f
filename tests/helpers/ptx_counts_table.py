"""Floors on an H200 from what `ptx_counts.py` counts: `ptx_counts.json`, and a page of the docs.

`make ptx-counts` runs this file. A floor is what one unit takes for the counted work if it is never
idle; none is a time.
"""

import json
import subprocess
from typing import Any

import aot
from aot_table import write_rows

RESULT = aot.ROOT / "bench" / "results" / "ptx_counts.json"
PAGE = aot.ROOT / "docs" / "kernels-counts.md"
BEGIN, END = "<!-- counts: begin -->\n", "<!-- counts: end -->\n"

# An H200 at 1.755 GHz: multiprocessors, schedulers on each, Hz, bytes a second of the memory.
SMS, SCHEDULERS, CLOCK, DRAM = 132, 4, 1.755e9, 4.8e12
# A clock: bytes of the L2 (measured on an H800, arXiv 2402.13499); operations in 16 bits of the
# tensor cores of a multiprocessor.
L2, TENSOR = 3942, 4096
# A multiprocessor: registers, warps, shared memory (a program takes 1 KiB of its own), programs.
REGISTERS, WARPS, SHARED, PROGRAMS = 65536, 64, 228 * 1024, 32

MOST = 1.1  # what is moved over the least that could be
_SCATTERED = (
    "a warp stores the picks among 32 rows at a time, which begin anywhere in the result. Storing "
    "whole sectors would take shared memory and a barrier, for a few KiB."
)
EXCUSED = {
    ("_compact_kernel", "loads"): (
        "every thread searches by itself, 8 bytes at a time, in a few KiB that stay in the L1."
    ),
    ("_random_select_kernel", "stores"): _SCATTERED,
    ("_topk_select_kernel", "stores"): _SCATTERED,
    ("_finish_kernel", "stores"): _SCATTERED,
    ("_round_kernel", "loads"): (
        "candidates are anywhere in a line of the matrix, so 4 bytes of a sector are used. To read "
        "whole lines would take as many sectors as there are, four times as many at 16,384 rows."
    ),
    ("_first_gains_kernel", "stores"): ("the diagonal of a matrix has one number in each line"),
    ("_split_kernel", "stores"): (
        "the softmax states of a head lie beside those of its other splits, so each head's is in a "
        "sector of its own. In the other order `_merge_splits_kernel` would read as many more "
        "sectors as are saved here."
    ),
}


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """What is moved over the least that could be: sectors, and wavefronts of shared memory."""
    parts = {"loads": ("load_sectors", "loaded"), "stores": ("store_sectors", "stored")}
    parts["shared"] = ("wavefronts", "shared")
    return {name: row[moved] / row[least] for name, (moved, least) in parts.items() if row[least]}


def resident(row: dict[str, Any]) -> int:
    """Programs that fit on a multiprocessor at a time."""
    per_warp = -(-row["registers"] // 8) * 8 * 32
    warps = min(REGISTERS // SCHEDULERS // per_warp * SCHEDULERS, WARPS)
    return min(warps // row["warps"], SHARED // (row["shared_bytes"] + 1024), PROGRAMS)


def floors(row: dict[str, Any]) -> dict[str, float]:
    """Microseconds that each unit is busy at least."""
    sms = min(SMS, row["programs"])
    schedulers = min(SMS * SCHEDULERS, row["programs"] * row["warps"])
    seconds = {
        "issue": row["instructions"] * row["sass"] / row["ptx"] / schedulers / CLOCK,
        "DRAM": row["launch_sectors"] * 32 / DRAM,
        "L2": row["program_sectors"] * 32 / L2 / CLOCK,
        "shared": row["wavefronts"] / sms / CLOCK,
        "tensor": row["flops"] / sms / TENSOR / CLOCK,
    }
    return {unit: 1e6 * floor for unit, floor in seconds.items()}


def kept() -> dict[str, Any]:
    return json.loads(RESULT.read_text())


def write(result: dict[str, Any]) -> None:
    """Both files."""
    write_rows(RESULT, result)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + block(result) + END + rest.split(END)[1])


def shown() -> str:
    """What the docs have between the markers now."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0]


def block(result: dict[str, Any]) -> str:
    """Markdown: a table for each op, and why some rows move more than they must."""
    units = [f"{unit} µs" for unit in floors(result["rows"][0])]
    head = ["shape", "kernel", "programs x warps", "resident", "barriers, average"]
    head += ["loads x", "stores x", "shared x", *units]
    lines = []
    for op in dict.fromkeys(row["op"] for row in result["rows"]):
        lines += [f"## {op}", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for row in (row for row in result["rows"] if row["op"] == op):
            lines.append(f"| {' | '.join(_cells(row))} |")
        lines.append("")
    lines += ["## More than the least", ""]
    lines += [f"- `{kernel}`, {part}: {why}" for (kernel, part), why in EXCUSED.items()]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    found, most = floors(row), max(floors(row).values())
    times = [f"**{x:.2f}**" if x == most else f"{x:.2f}" if x else "" for x in found.values()]
    moved = ratios(row)
    parts = [f"{moved[p]:.2f}" if p in moved else "" for p in ("loads", "stores", "shared")]
    size, barriers = f"{row['programs']} x {row['warps']}", row["barriers"] / row["programs"]
    if row["launches"] > 1:
        size += f", {row['launches']} times"
    front = [row["shape"], f"`{row['kernel'].strip('_')}`", size, str(resident(row))]
    return [*front, f"{barriers:,.0f}", *parts, *times]


def main() -> None:
    import ptx_counts
    import triton

    assert ptx_counts.ARCH == "sm_90", "run it by `make ptx-counts`"
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=aot.ROOT, capture_output=True, text=True).stdout.strip()
    facts = {"command": "make ptx-counts", "after_commit": commit, "triton": triton.__version__}
    write({**facts, "arch": ptx_counts.ARCH, "rows": list(ptx_counts.rows())})
    print(f"-> {RESULT}, {PAGE}")


if __name__ == "__main__":
    main()
