"""What `bench_overhead.py` found, as tables: on the terminal and in docs/benchmarks.md."""

import json
from collections.abc import Callable
from pathlib import Path

from figures import markdown

NAME = "overhead"  # of the markers
FILE = "overhead_cpu.json"
# At most so many times native; natively a batch of unequal prompts is padded, packed it is not.
TARGETS = {("packed", 1): 1.03, ("packed", 4): 0.95, ("padded", 1): 1.05, ("padded", 4): 1.05}
SHARE = 0.02  # of a packed prefill, for selecting and gathering
HEAD = ["batch", "plan", "unpatched ms", "native ms", "padded", "p20-p80", "packed", "p20-p80",
        "select + gather"]  # fmt: skip


def missed(row: dict) -> list[str]:
    """Which targets a case misses."""
    ratios = {way: row[f"{way}_of_native"]["median"] for way in ("padded", "packed")}
    said = [
        f"{way} {ratio:.3f} times native, at most {TARGETS[way, row['batch']]} wanted"
        for way, ratio in ratios.items()
        if ratio > TARGETS[way, row["batch"]]
    ]
    share = row["select_and_gather"]
    over = f"select + gather {share:.1%} of the prefill, at most {SHARE:.0%} wanted"
    return said + ([over] if share > SHARE else [])


def line(row: dict) -> list[str]:
    cells = [str(row["batch"]), row["plan"]]
    cells += [f"{row[f'{way}_ms']['median']:.0f}" for way in ("unpatched", "native")]
    for way in ("padded", "packed"):
        ratio = row[f"{way}_of_native"]
        cells += [f"{ratio['median']:.3f}", f"{ratio['p20']:.2f}-{ratio['p80']:.2f}"]
    return [*cells, f"{row['select_and_gather']:.1%}"]


def document(record: dict, table: Callable[[list[list[str]]], str] = markdown) -> str:
    """Everything, the misses with their profiles."""
    run, rows = record["runs"][-1], [row for row in record["rows"] if row["op"] == NAME]
    rounds = min((row["rounds"] for row in rows), default=0)
    parts = [
        f"{run['device']}, torch {run['torch']}, transformers {run['transformers']}, commit "
        f"{run['commit']}; {run['note']}. Medians of {rounds} alternating rounds; padded and "
        "packed are times native, round by round.",
        table([HEAD, *map(line, rows)]),
    ]
    python = [row for row in record["rows"] if row["op"] == "python"]
    parts += [
        f"Python that a patch adds ({row['case']}, CPU time): "
        + "; ".join(
            f"{way} {row[f'{way}_per_prefill_layer']:.0f} us a layer of a prefill, "
            f"{row[f'{way}_per_token']:.0f} us a decoded token"
            for way in ("padded", "packed")
        )
        + "."
        for row in python
    ]
    said = [f"{row['case']}: {'; '.join(missed(row))}" for row in rows if missed(row)]
    if said:
        parts.append("\n".join(["Targets missed:", "", *(f"- {text}" for text in said)]))
    parts += [f"```\n{row['case']}\n{row['profile']}\n```" for row in rows if "profile" in row]
    return "\n\n".join(parts)


def block(results: Path) -> str:
    """What the docs show."""
    path = results / FILE
    return document(json.loads(path.read_text())) if path.exists() else "Not measured yet."
