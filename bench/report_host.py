"""The tables of `bench_host.py`."""

from collections.abc import Callable

HOST, UNPATCHED = "host", "unpatched"
PATCHED = ("padded", "packed", "packed, Triton", "auto")


def host(record: dict, table: Callable[[list[list[str]]], str]) -> str:
    """A decoding step and a prefill of every case: unpatched in ms, the others as ratios to it."""
    run, rows = record["runs"][-1], [row for row in record["rows"] if row["op"] == HOST]
    rounds = min((row["rounds"] for row in rows), default=0)
    parts = [
        f"{run['device']}, torch {run['torch']}, transformers {run['transformers']}, commit "
        f"{run['commit']}; {run['note']}. Medians of {rounds} alternating rounds, p20-p80 in "
        "brackets; patched are times unpatched, round by round."
    ]
    for what, title in (("step", "a decoding step"), ("prefill", "a prefill")):
        lines = [[title, "padding", f"{UNPATCHED} ms", *PATCHED]]
        for row in rows:
            flops = f", {row['padding_flops'] / 1e6:.0f} MFLOP" * (what == "prefill")
            cells = [row["case"], f"{row['padding']:.0%}{flops}"]
            cells.append(f"{row[f'{UNPATCHED} {what}_ms']['median']:.1f}")
            for name in PATCHED:
                ratio = row[f"{name} {what}"]
                layout = f", {row[f'{name} layout']}" * (name == "auto")
                spread = f"{ratio['p20']:.2f}-{ratio['p80']:.2f}"
                cells.append(f"{ratio['median']:.3f} ({spread}{layout})")
            lines.append(cells)
        parts.append(table(lines))
    counted = [["operators a layer of a decoding step", UNPATCHED, *PATCHED]]
    for row in rows:
        numbers = (f"{row[f'{name} operators']:.1f}" for name in (UNPATCHED, *PATCHED))
        counted.append([row["case"], *numbers])
    return "\n\n".join([*parts, table(counted)])
