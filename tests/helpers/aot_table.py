"""Keep what compiling ahead of time found: `bench/results/aot.json`, and a table of it in the docs.

`make aot` runs this file: it compiles every case of `aot_cases.py` and writes both.
"""

import json
import subprocess
from itertools import groupby
from typing import Any

import aot

RESULT = aot.ROOT / "bench" / "results" / "aot.json"
PAGE = aot.ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- compiled: begin -->\n", "<!-- compiled: end -->\n"

# What a cell says beside warps, registers and shared memory.
TENSOR_CORES = {"hmma": "HMMA", "hgmma": "HGMMA", "tcgen05": "tcgen05", "mfma": "MFMA"}


def kept() -> dict[str, Any]:
    return json.loads(RESULT.read_text())


def write(result: dict[str, Any]) -> None:
    """Both files; the JSON has a row on a line, so that differences can be read."""
    header = {name: value for name, value in result.items() if name != "rows"}
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    RESULT.write_text(f'{json.dumps(header)[:-1]}, "rows": [\n{rows}\n]}}\n')
    before, _, after = _parts()
    PAGE.write_text(before + BEGIN + table(result) + END + after)


def shown() -> str:
    """The table that the docs have now."""
    return _parts()[1]


def _parts() -> tuple[str, str, str]:
    before, rest = PAGE.read_text().split(BEGIN)
    return before, *rest.split(END)


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each case of a kernel and each Triton, a column for each GPU."""
    lines = []
    for kernel, rows in groupby(sorted(result["rows"], key=_kernel), _kernel):
        cells: dict[str, dict[str, dict[str, str]]] = {}
        for row in rows:
            versions = cells.setdefault(row["case"], {})
            versions.setdefault(row["triton"], {})[row["arch"]] = _cell(row)
        lines += ["", f"`{kernel}`", "", f"| | Triton | {' | '.join(aot.ARCHS)} |"]
        lines += ["| --- " * (len(aot.ARCHS) + 2) + "|"]
        for case, versions in cells.items():
            for version, found in versions.items():
                texts = [found.get(arch, "") for arch in aot.ARCHS]
                lines.append(f"| {case} | {version} | {' | '.join(texts)} |")
    return "\n".join(lines[1:]) + "\n"


def _kernel(row: dict[str, Any]) -> str:
    return row["kernel"]


def _cell(row: dict[str, Any]) -> str:
    found = row["found"]
    parts = [f"{row['setting']['warps']}w {found['registers']}r"]
    if found["shared"]:
        parts.append(f"{found['shared'] / 1024:.3g}K")
    parts += [name for key, name in TENSOR_CORES.items() if found.get(key)]
    if found["loads_128"]:
        parts.append("16B")
    if found.get("async_copies"):
        parts.append("async")
    return " ".join(parts)


def main() -> None:
    result = aot.in_processes_of_their_own("all")
    seconds = result.pop("seconds")
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=aot.ROOT, capture_output=True, text=True).stdout.strip()
    write({"command": "make aot", "after_commit": commit, **result})
    print(f"{len(result['rows'])} kernels in {seconds:.0f} s -> {RESULT}, {PAGE}")


if __name__ == "__main__":
    main()
