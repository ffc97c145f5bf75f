"""Write what compiling ahead of time found: `bench/results/aot.json`, and a table in the docs.

`make aot` runs this file: it compiles every case of `aot_cases.py` and writes both.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import aot

RESULT = aot.ROOT / "bench" / "results" / "aot.json"
PAGE = aot.ROOT / "docs" / "kernels.md"
BEGIN, END = "<!-- compiled: begin -->\n", "<!-- compiled: end -->\n"


def kept() -> dict[str, Any]:
    return json.loads(RESULT.read_text())


def write(result: dict[str, Any]) -> None:
    """Both files."""
    write_rows(RESULT, result)
    before, _, after = _parts()
    PAGE.write_text(before + BEGIN + table(result) + END + after)


def write_rows(path: Path, result: dict[str, Any]) -> None:
    """The JSON, with a row on a line, so that differences can be read."""
    header = {name: value for name, value in result.items() if name != "rows"}
    rows = ",\n".join(json.dumps(row) for row in result["rows"])
    path.write_text(f'{json.dumps(header)[:-1]}, "rows": [\n{rows}\n]}}\n')


def shown() -> str:
    """The table that the docs have now."""
    return _parts()[1]


def _parts() -> tuple[str, str, str]:
    before, rest = PAGE.read_text().split(BEGIN)
    return before, *rest.split(END)


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each kernel, a column for each GPU, the worst of all its cases."""
    lines = [f"| kernel | cases | {' | '.join(aot.ARCHS)} |", "| --- " * (len(aot.ARCHS) + 2) + "|"]
    for kernel in sorted({row["kernel"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["kernel"] == kernel]
        cells = [_cell([row for row in rows if row["arch"] == arch]) for arch in aot.ARCHS]
        cases = len({row["case"] for row in rows})
        lines.append(f"| `{kernel.strip('_')}` | {cases} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]]) -> str:
    """Registers a thread, KiB of shared memory and spills: of each the worst."""
    registers, shared, spills = (
        max(row["found"][name] for row in rows) for name in ("registers", "shared", "spills")
    )
    return f"{registers}, {shared / 1024:.3g}, {spills}"


def main() -> None:
    result = aot.in_processes_of_their_own("all")
    seconds = result.pop("seconds")
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=aot.ROOT, capture_output=True, text=True).stdout.strip()
    write({"command": "make aot", "after_commit": commit, **result})
    print(f"{len(result['rows'])} kernels in {seconds:.0f} s -> {RESULT}, {PAGE}")


if __name__ == "__main__":
    main()
