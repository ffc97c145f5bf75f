"""What the figures say, in tables: plain text for a terminal, Markdown for a document.

A case's times are compared by the sternest metric that both sides have: graph replay with cold
caches, else with warm ones, else plain calls. "best" is the fastest of all baselines by that
metric, compiled ones included. Losses are shown like wins, and the last lines are the geometric
mean and the worst case.
"""

import statistics
from collections.abc import Sequence

METRICS = ("cold", "warm", "call")
BASELINES = ("eager", "fair", "compiled")
HEAD = ("case", "dtype", "eager", "compiled", "best", "vtfast", "p20-p80", "x eager", "x best",
        "by call", "rate", "of ceiling", "parity")  # fmt: skip


def medians(row: dict, metric: str, roles: Sequence[str]) -> dict[str, float]:
    return {
        name: way[metric]["median"]
        for name, way in row["ways"].items()
        if way["role"] in roles and metric in way
    }


def ours(row: dict, metric: str) -> float | None:
    return next(iter(medians(row, metric, ["vtfast"]).values()), None)


def metric_of(row: dict) -> str | None:
    """The sternest metric in which vtfast has a competitor."""
    for metric in METRICS:
        if ours(row, metric) is not None and medians(row, metric, BASELINES):
            return metric
    return None


def best(row: dict, metric: str, roles: Sequence[str] = BASELINES) -> tuple[str, float] | None:
    return min(medians(row, metric, roles).items(), key=lambda item: item[1], default=None)


def times_faster(row: dict, roles: Sequence[str], metric: str | None) -> float | None:
    """Baseline over vtfast: below 1 is a loss."""
    if metric is None or row["red"]:
        return None
    fastest, mine = best(row, metric, roles), ours(row, metric)
    return fastest[1] / mine if fastest and mine else None


def rate(row: dict, runs: Sequence[dict]) -> tuple[str, str]:
    """GB/s, or TFLOP/s where arithmetic is the floor; and its share of the measured ceiling."""
    metric = metric_of(row)
    if metric is None or row["red"]:
        return "", ""
    ms, found = ours(row, metric), runs[row["run"]]["ceilings"]
    copy, product = found["copy_gb_s"], found["matmul_tflop_s"]
    bandwidth, speed = row["nbytes"] / ms / 1e6, row["flops"] / ms / 1e9
    if speed / product > bandwidth / copy:
        return f"{digits(speed)} TFLOP/s", f"{speed / product:.0%}"
    return f"{digits(bandwidth)} GB/s", f"{bandwidth / copy:.0%}"


def digits(x: float) -> str:
    """Three digits, no exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}" if x >= 0.001 else f"{x:.5f}"


def cells(row: dict, runs: Sequence[dict]) -> list[str]:
    """One line of the table; times in ms."""
    metric = metric_of(row)
    front = [row["case"], row["dtype"]]
    if row["red"]:
        return [*front, *[""] * (len(HEAD) - 3), "RED: " + "; ".join(row["red"])]
    if metric is None:
        return [*front, *[""] * (len(HEAD) - 3), "ok"]
    mine = next(w for w in row["ways"].values() if w["role"] == "vtfast")[metric]
    fastest = best(row, metric)
    by_role = [best(row, metric, [role]) for role in ("eager", "compiled")]
    ratios = [
        times_faster(row, ["eager"], metric),
        times_faster(row, BASELINES, metric),
        times_faster(row, BASELINES, "call"),
    ]
    return [
        *front,
        *(digits(found[1]) if found else "" for found in by_role),
        f"{digits(fastest[1])} {fastest[0]}",
        f"{digits(mine['median'])} {metric}",
        f"{digits(mine['p20'])}-{digits(mine['p80'])}",
        *(f"{ratio:.2f}" if ratio else "" for ratio in ratios),
        *rate(row, runs),
        "ok",
    ]


def last_lines(rows: Sequence[dict]) -> list[str]:
    """Geometric mean and worst case against the best baseline and against eager."""
    lines = []
    for title, roles in (("best", BASELINES), ("eager", ["eager"])):
        ratios = {}
        for row in rows:
            if ratio := times_faster(row, roles, metric_of(row)):
                ratios[f"{row['op']}, {row['case']}"] = ratio
        if ratios:
            worst = min(ratios, key=ratios.__getitem__)
            mean = statistics.geometric_mean(ratios.values())
            lines.append(
                f"against {title}: geometric mean {mean:.2f}x over {len(ratios)} cases, "
                f"worst {ratios[worst]:.2f}x ({worst})"
            )
    return lines


def remarks(rows: Sequence[dict]) -> list[str]:
    """What is wrong, what is missing, what a graph does not take, each once."""
    said: dict[str, None] = {}
    for row in rows:
        for name, reason in row["red"].items():
            said[f"RED {row['op']}, {row['case']}: {name}: {reason}"] = None
        for name, way in row["ways"].items():
            if "missing" in way:
                said[f"{row['op']}: {name}: {way['missing']}"] = None
            if "not_captured" in way:
                said[f"{row['op']}: {name} is in no graph: {way['not_captured']}"] = None
    return list(said)


def summary(rows: Sequence[dict], runs: Sequence[dict]) -> str:
    """A table for every op as plain text, with a header and the last lines."""
    parts = ["\n".join(facts(runs))]
    for op, some in by_op(rows).items():
        body = aligned([list(HEAD), *(cells(row, runs) for row in some)])
        parts.append("\n".join([f"{op}, times in ms", body, *remarks(some), *last_lines(some)]))
    if len(by_op(rows)) > 1:
        parts.append("\n".join(["all", *last_lines(rows)]))
    return "\n\n".join(parts)


def by_op(rows: Sequence[dict]) -> dict[str, list[dict]]:
    ops = dict.fromkeys(row["op"] for row in rows)
    return {op: [row for row in rows if row["op"] == op] for op in ops}


def facts(runs: Sequence[dict]) -> list[str]:
    """What and where, in a few lines."""
    run, found = runs[-1], runs[-1]["ceilings"]
    lines = [
        f"{run['device']}, driver {run.get('driver', 'none')}, torch {run['torch']}, "
        f"triton {run['triton']}, commit {run['commit']}",
        f"Ceilings measured: copy {found['copy_gb_s']:.0f} GB/s, "
        f"{found['matmul_dtype']} matmul {found['matmul_tflop_s']:.3g} TFLOP/s",
    ]
    if "empty_kernel_call_ms" in found:
        eager, graph = (found[f"empty_kernel_{k}_ms"]["median"] for k in ("call", "graph"))
        lines.append(
            f"An empty kernel: {eager * 1e3:.2f} us eager, {graph * 1e3:.2f} us in a graph"
        )
    return lines


def document(record: dict) -> str:
    """Everything in Markdown: per op its table and last lines, then those over all."""
    rows, runs = record["rows"], record["runs"]
    parts = ["  \n".join(facts(runs))]
    for op, some in by_op(rows).items():
        table = markdown([list(HEAD), *(cells(row, runs) for row in some)])
        said = [f"- {line}" for line in (*last_lines(some), *remarks(some))]
        parts += [f"### {op}", f"Times in ms.\n\n{table}", "\n".join(said)]
    parts += ["### All", "\n".join(f"- {line}" for line in last_lines(rows))]
    return "\n\n".join(part for part in parts if part)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def verdict(row: dict) -> str:
    """One case in a few words, as it is measured."""
    if row["red"]:
        return "RED: " + "; ".join(f"{name}: {why}" for name, why in row["red"].items())
    metric = metric_of(row)
    if metric is None:
        return "parity ok"
    return f"{times_faster(row, BASELINES, metric):.2f}x the best baseline, {metric}"
