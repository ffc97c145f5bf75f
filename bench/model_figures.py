"""What whole-model figures say, in tables: plain text for a terminal, Markdown for a document.

Ratios are medians of those taken within a round; "of unpatched" is of the faster one of its two
attentions. Above 1 is worse, and stays in.
"""

from collections.abc import Sequence

from figures import aligned, digits, markdown
from prefills import FLASH, NATIVE, PACKED, PADDED, UNPATCHED, WAYS

MOST = 1.05  # how many times a native prefill a packed one may take before a profile is due
TIMES = ("case", "tokens", "unpatched", "FA2", "native", "padded", "packed", "packed p20-p80",
         "of unpatched", "of native", "encoding", "parity")  # fmt: skip
DECODE = ("case", *WAYS)
COUNTS = ("case", "way", "launches", "operators", "host reads", "allocations", "peak", "KV cache")


def prefills(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if row["batch"] is not None]


def searches(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if row["batch"] is None]


def measured(row: dict) -> bool:
    return not row["red"] and "unmeasured" not in row


def median(row: dict, way: str, name: str) -> float | None:
    return row["ways"].get(way, {}).get(name, {}).get("median")


def cell(row: dict, way: str, name: str) -> str:
    found = row["ways"].get(way, {})
    if "missing" in found:
        return found["missing"]
    return digits(found[name]["median"]) if name in found else ""


def trouble(row: dict) -> str:
    if row["red"]:
        return "RED: " + "; ".join(f"{name}: {why}" for name, why in row["red"].items())
    return row.get("unmeasured", "ok")


def times(row: dict) -> list[str]:
    """One line: milliseconds to the first token, and the ratios of the packed layout."""
    if not measured(row):
        return [row["case"], *[""] * (len(TIMES) - 2), trouble(row)]
    spread = row["ways"][PACKED]["ttft_ms"]
    return [
        row["case"],
        f"{row['average']:.0f} of {row['tokens']}",
        *(cell(row, way, "ttft_ms") for way in (UNPATCHED, FLASH, NATIVE, PADDED, PACKED)),
        f"{digits(spread['p20'])}-{digits(spread['p80'])}",
        *(f"{median(row, PACKED, name):.2f}" for name in ("of_unpatched", "of_native")),
        digits(row["encode_ms"]),
        "ok",
    ]


def decode(row: dict) -> list[str]:
    return [row["case"], *(cell(row, way, "decode_ms") for way in WAYS)]


def costs(row: dict) -> list[list[str]]:
    """A line for every way that ran."""
    names = ("launches", "operators", "host_reads", "allocations")
    lines = []
    for way, found in row["ways"].items():
        if "missing" not in found:
            numbers = ["-" if found[name] is None else str(found[name]) for name in names]
            sizes = [f"{found[name] / 2**20:.1f} MiB" for name in ("peak_bytes", "kv_bytes")]
            lines.append([row["case"], way, *numbers, *sizes])
    return lines


def search(row: dict) -> str:
    """The break-even in words."""
    if not measured(row):
        return f"{row['case']}: {trouble(row)}"
    tried = [p["tokens"] for p in row["points"]]
    found = row["break_even"]
    if found is None:
        said = f"packed loses up to {tried[-1]} visual tokens, the most that was tried"
    elif found == tried[0]:
        said = f"packed wins from {tried[0]} visual tokens on, the fewest that were tried"
    else:
        said = f"packed wins from {found:.0f} visual tokens on"
    return f"{row['case']}: {said}"


def last_lines(rows: Sequence[dict]) -> list[str]:
    """The worst cases, against both yardsticks; and who is due for a profile."""
    good = [row for row in prefills(rows) if measured(row)]
    if not good:
        return []
    lines = []
    for name, what in (("of_unpatched", "an unpatched"), ("of_native", "a native")):
        worst = max(good, key=lambda row: median(row, PACKED, name))
        lines.append(
            f"worst: packed takes {median(worst, PACKED, name):.2f} times {what} prefill "
            f"({worst['case']})"
        )
    slow = [row["case"] for row in good if median(row, PACKED, "of_native") > MOST]
    if slow:
        lines.append(
            f"over {MOST} times native: {'; '.join(slow)} (bench_model.py --profile --only CASE "
            "says where)"
        )
    return lines


def facts(runs: Sequence[dict]) -> list[str]:
    """What and where, in a line or two."""
    run = runs[-1]
    lines = [
        f"{run['device']}, driver {run.get('driver', 'none')}, torch {run['torch']}, triton "
        f"{run['triton']}, transformers {run['transformers']}, commit {run['commit']}",
        "Random weights, true shapes" if "driver" in run else "Random weights",
    ]
    return [*lines, *([run["note"]] if "note" in run else [])]


def tables(rows: Sequence[dict]) -> list[tuple[str, list[list[str]]]]:
    good = [row for row in prefills(rows) if measured(row)]
    return [
        ("Time to first token, ms", [list(TIMES), *map(times, prefills(rows))]),
        ("Decoding, ms per token", [list(DECODE), *map(decode, good)]),
        ("Counted in one prefill", [list(COUNTS), *(line for row in good for line in costs(row))]),
    ]


def summary(rows: Sequence[dict], runs: Sequence[dict]) -> str:
    parts = ["\n".join(facts(runs))]
    parts += [f"{title}\n{aligned(lines)}" for title, lines in tables(rows) if len(lines) > 1]
    parts += ["\n".join([*map(search, searches(rows)), *last_lines(rows)])]
    return "\n\n".join(part for part in parts if part)


def document(record: dict) -> str:
    """Everything in Markdown."""
    rows = record["rows"]
    parts = ["  \n".join(facts(record["runs"]))]
    for title, lines in tables(rows):
        if len(lines) > 1:
            parts.append(f"### {title}\n\n{markdown(lines)}")
    said = [*map(search, searches(rows)), *last_lines(rows)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in said)])


def verdict(row: dict) -> str:
    """One case in a few words, as it is measured."""
    if row["batch"] is None:
        return search(row)
    if not measured(row):
        return f"{row['case']}: {trouble(row)}"
    ratios = [median(row, PACKED, name) for name in ("of_unpatched", "of_native")]
    return f"{row['case']}: packed {ratios[0]:.2f} of unpatched, {ratios[1]:.2f} of native"
