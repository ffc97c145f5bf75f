"""Make tables for the terminal, README and docs, and the plots, from the JSON of the benches.

Ops are compared by the first metric that both sides have: "cold", else "warm", else "call"
(`machine.py`); "best" is the fastest baseline by it. Ratios of whole models are medians of the
ratios within a round; "of unpatched" is of the faster attention. In the JSON variants are "ways".
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from report_host import HOST, host

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README, DOCS = ROOT / "bench" / "results", ROOT / "README.md", ROOT / "docs/benchmarks.md"
OPS, MODELS, OVERHEAD = "op speed", "whole model speed", "overhead"  # names of the markers
METRICS, BASELINES = ("cold", "warm", "call"), ("eager", "fair", "compiled")
UNPATCHED, FLASH, NATIVE, PADDED, PACKED = VARIANTS = (
    "unpatched, SDPA", "unpatched, FlashAttention-2", "native", "padded", "packed"
)  # fmt: skip
# Largest ratios to native, by layout and batch; native pads a batch of unequal prompts.
TARGETS = {(PADDED, 1): 1.05, (PADDED, 4): 1.05, (PACKED, 1): 1.03, (PACKED, 4): 0.95}
SHARE = 0.02  # of a packed prefill, for selecting and gathering
OP_HEAD = ["case", "dtype", "eager", "compiled", "best", "vtfast", "p20-p80", "x eager", "x best",
           "by call", "rate", "of ceiling", "parity"]  # fmt: skip
TIMES = ["case", "tokens", "unpatched", "FA2", "native", "padded", "packed", "packed p20-p80",
         "of unpatched", "of native", "encoding", "parity"]  # fmt: skip
COUNTS = ("launches", "operators", "host reads", "allocations")
NO_GPU = "**No {} has been timed on a GPU yet**, so nothing is claimed about its speed there."
ON_CPU = "the PyTorch fallbacks, which a CPU runs; the kernels are not in these figures"
Section = tuple[str, list[list[str]], list[str]]  # title, table, lines


def digits(x: float) -> str:
    """Three digits, no exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}" if x >= 0.001 else f"{x:.5f}"


def spread(found: dict, show: Callable[[float], str] = digits) -> str:
    return f"{show(found['p20'])}-{show(found['p80'])}"


def aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def markdown(table: Sequence[Sequence[str]], rule: Sequence[str] | None = None) -> str:
    """`rule`: how the columns are aligned."""
    head, *body = table
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, rule or ["---"] * len(head), *body])


def as_text(facts: list[str], sections: list[Section]) -> str:
    parts = ([title, aligned(table) if table else "", *lines] for title, table, lines in sections)
    return "\n\n".join("\n".join(filter(None, part)) for part in [facts, *parts])


def as_markdown(facts: list[str], sections: list[Section]) -> str:
    parts = ["  \n".join(facts)]
    for title, table, lines in sections:
        shown = "\n".join(f"- {line}" for line in lines)
        parts += [title and f"### {title}", table and markdown(table), shown]
    return "\n\n".join(filter(None, parts))


def sections(record: dict) -> tuple[list[str], list[Section]]:
    """Facts and tables of a record, of ops or of whole models."""
    rows, run = record["rows"], record["runs"][-1]
    is_model = any(row["op"] == "model" for row in rows)
    found = run.get("ceilings") or {}
    lines = [
        f"{run['device']}, driver {run.get('driver', 'none')}, torch {run['torch']}, triton "
        f"{run['triton']}, transformers {run['transformers']}, commit {run['commit']}"
    ]
    if found:
        product = f"{found['matmul_dtype']} matmul {found['matmul_tflop_s']:.3g} TFLOP/s"
        lines.append(f"Ceilings measured: copy {found['copy_gb_s']:.0f} GB/s, {product}")
    if "empty_kernel_call_ms" in found:
        call, graph = (1e3 * found[f"empty_kernel_{k}_ms"]["median"] for k in ("call", "graph"))
        lines.append(f"An empty kernel: {call:.2f} us by call, {graph:.2f} us in a graph")
    if is_model:
        lines.append("Random weights, true shapes" if "driver" in run else "Random weights")
    lines += [run["note"][0].upper() + run["note"][1:]] if "note" in run else []
    return lines, model_sections(rows) if is_model else op_sections(rows, record["runs"])


def on_cpu(record: dict) -> bool:
    return record["runs"][-1]["device"].endswith("(CPU)")


def verdict(row: dict) -> str:
    """One case in a few words, printed as soon as it is measured."""
    if "ways" not in row:  # of `bench_overhead.py`
        said = "; ".join(missed(row)) if "batch" in row else "measured"
    elif trouble(row) != "ok":
        said = trouble(row)
    elif row["op"] == "model":
        said = model_verdict(row)
    elif metric := metric_of(row):
        said = f"{times_faster(row, BASELINES, metric):.2f}x the best baseline, {metric}"
    else:
        said = "parity ok"
    return f"{row['case']}: {said or 'within the targets'}"


def trouble(row: dict) -> str:
    wrong = "; ".join(f"{name}: {why}" for name, why in row["red"].items())
    return f"RED: {wrong}" if wrong else row.get("unmeasured", "ok")


# Ops


def medians(row: dict, metric: str, roles: Sequence[str]) -> dict[str, float]:
    ways = ((name, way) for name, way in row["ways"].items() if way["role"] in roles)
    return {name: way[metric]["median"] for name, way in ways if metric in way}


def ours(row: dict, metric: str) -> float | None:
    return next(iter(medians(row, metric, ["vtfast"]).values()), None)


def metric_of(row: dict) -> str | None:
    """The first of `METRICS` that vtfast and a baseline have; None if an answer is wrong."""
    compared = (m for m in METRICS if ours(row, m) is not None and medians(row, m, BASELINES))
    return None if row["red"] else next(compared, None)


def best(row: dict, metric: str, roles: Sequence[str] = BASELINES) -> tuple[str, float] | None:
    return min(medians(row, metric, roles).items(), key=lambda item: item[1], default=None)


def times_faster(row: dict, roles: Sequence[str], metric: str | None) -> float | None:
    """Baseline over vtfast: below 1 is a loss."""
    fastest = metric and best(row, metric, roles)
    return fastest[1] / ours(row, metric) if fastest else None


def ratios_of(rows: Sequence[dict], roles: Sequence[str]) -> dict[str, float]:
    """By op and case, where there is a baseline of these roles."""
    found = {f"{r['op']}, {r['case']}": times_faster(r, roles, metric_of(r)) for r in rows}
    return {name: ratio for name, ratio in found.items() if ratio}


def of_ceiling(row: dict, runs: Sequence[dict]) -> tuple[str, float]:
    """GB/s, or TFLOP/s if arithmetic is the limit, and its share of the measured ceiling."""
    ms, found = ours(row, metric_of(row)), runs[row["run"]]["ceilings"]
    moved, computed = row["nbytes"] / ms / 1e6, row["flops"] / ms / 1e9
    of_copy, of_product = moved / found["copy_gb_s"], computed / found["matmul_tflop_s"]
    text = f"{digits(computed)} TFLOP/s" if of_product > of_copy else f"{digits(moved)} GB/s"
    return text, max(of_copy, of_product)


def op_row(row: dict, runs: Sequence[dict]) -> list[str]:
    """One line of the table; times in ms."""
    front, metric = [row["case"], row["dtype"]], metric_of(row)
    if metric is None:
        said = "RED: " + "; ".join(row["red"]) if row["red"] else "ok"
        return [*front, *[""] * (len(OP_HEAD) - 3), said]
    mine = next(w for w in row["ways"].values() if w["role"] == "vtfast")[metric]
    fastest, by_role = best(row, metric), (best(row, metric, [r]) for r in ("eager", "compiled"))
    compared = ((["eager"], metric), (BASELINES, metric), (BASELINES, "call"))
    ratios = [times_faster(row, *how) for how in compared]
    times = [f"{digits(fastest[1])} {fastest[0]}", f"{digits(mine['median'])} {metric}"]
    shown = [f"{ratio:.2f}" if ratio else "" for ratio in ratios]
    by_role = [digits(found[1]) if found else "" for found in by_role]
    rate, share = of_ceiling(row, runs)
    return [*front, *by_role, *times, spread(mine), *shown, rate, f"{share:.0%}", "ok"]


def last_lines(rows: Sequence[dict]) -> list[str]:
    """Geometric mean and worst case against the best baseline and against eager."""
    lines = []
    for title, roles in (("best", BASELINES), ("eager", ["eager"])):
        if ratios := ratios_of(rows, roles):
            worst, mean = min(ratios, key=ratios.get), statistics.geometric_mean(ratios.values())
            said = f"geometric mean {mean:.2f}x over {len(ratios)} cases"
            lines.append(f"against {title}: {said}, worst {ratios[worst]:.2f}x ({worst})")
    return lines


def remarks(rows: Sequence[dict]) -> list[str]:
    """What is wrong, missing, or not captured in a graph, each once."""
    said = []
    for row in rows:
        said += [f"RED {row['op']}, {row['case']}: {n}: {why}" for n, why in row["red"].items()]
        for name, way in row["ways"].items():
            said += [f"{row['op']}: {name}: {way['missing'].strip()}"] if "missing" in way else []
            why = way.get("not_captured")
            said += [f"{row['op']}: {name} is in no graph: {why}"] if why else []
    return list(dict.fromkeys(said))


def by_op(rows: Sequence[dict]) -> dict[str, list[dict]]:
    ops = dict.fromkeys(row["op"] for row in rows)
    return {op: [row for row in rows if row["op"] == op] for op in ops}


def op_sections(rows: Sequence[dict], runs: Sequence[dict]) -> list[Section]:
    """A table for every op with its last lines, then those over all ops."""
    sections = [
        (f"{op}, ms", [OP_HEAD, *(op_row(r, runs) for r in some)], last_lines(some) + remarks(some))
        for op, some in by_op(rows).items()
    ]
    return sections + ([("All", [], last_lines(rows))] if len(sections) > 1 else [])


def op_summary(record: dict) -> str:
    """A line per op: means and worst cases."""
    table = [["op", "cases", "x best baseline", "worst", "x eager", "worst"]]
    for op, rows in by_op(record["rows"]).items():
        wrong, cells = sum(bool(row["red"]) for row in rows), []
        for roles in (BASELINES, ["eager"]):
            ratios = ratios_of(rows, roles).values()
            mean = statistics.geometric_mean(ratios) if ratios else None
            cells += [f"{mean:.2f}", f"{min(ratios):.2f}"] if ratios else ["", ""]
        table.append([op, f"{len(rows)}, {wrong} RED" if wrong else str(len(rows)), *cells])
    return markdown(table)


# Whole models


def measured(rows: Sequence[dict], batched: bool = True) -> list[dict]:
    """The prefills that were timed, or the searches for the break-even."""
    found = (row for row in rows if (row["batch"] is not None) == batched)
    return [row for row in found if trouble(row) == "ok"]


def median(row: dict, variant: str, name: str) -> float | None:
    return row["ways"].get(variant, {}).get(name, {}).get("median")


def _cell(row: dict, variant: str, name: str) -> str:
    found = row["ways"].get(variant, {})
    return found.get("missing") or (digits(found[name]["median"]) if name in found else "")


def _ttft_row(row: dict) -> list[str]:
    """Milliseconds to the first token, and the ratios of the packed layout."""
    if trouble(row) != "ok":
        return [row["case"], *[""] * (len(TIMES) - 2), trouble(row)]
    times = [_cell(row, variant, "ttft_ms") for variant in VARIANTS]
    ratios = [f"{median(row, PACKED, name):.2f}" for name in ("of_unpatched", "of_native")]
    front = [row["case"], f"{row['average']:.0f} of {row['tokens']}", *times]
    return [*front, spread(row["ways"][PACKED]["ttft_ms"]), *ratios, digits(row["encode_ms"]), "ok"]


def _count_rows(row: dict) -> list[list[str]]:
    """A line for every variant that ran."""
    lines = []
    for variant, found in row["ways"].items():
        if "missing" not in found:
            counts = (found[name.replace(" ", "_")] for name in COUNTS)
            sizes = [f"{found[name] / 2**20:.1f} MiB" for name in ("peak_bytes", "kv_bytes")]
            shown = ["-" if number is None else str(number) for number in counts]
            lines.append([row["case"], variant, *shown, *sizes])
    return lines


def model_verdict(row: dict) -> str:
    if row["batch"] is not None:
        ratios = [median(row, PACKED, name) for name in ("of_unpatched", "of_native")]
        return f"packed {ratios[0]:.2f} of unpatched, {ratios[1]:.2f} of native"
    tried, found = [p["tokens"] for p in row["points"]], row["break_even"]
    if found is None:
        return f"packed loses up to {tried[-1]} visual tokens, the most that was tried"
    fewest = ", the fewest that were tried" if found == tried[0] else ""
    return f"packed wins from {found:.0f} visual tokens on{fewest}"


def worst_lines(rows: Sequence[dict]) -> list[str]:
    """The worst cases against the unpatched and against the native prefill."""
    good, lines = measured(rows), []
    for name, what in (("of_unpatched", "an unpatched"), ("of_native", "a native")):
        ratios = {row["case"]: median(row, PACKED, name) for row in good}
        for case in sorted(ratios, key=ratios.get)[-1:]:
            lines.append(f"worst: packed takes {ratios[case]:.2f} times {what} prefill ({case})")
    return lines


def model_sections(rows: Sequence[dict]) -> list[Section]:
    good, searches = measured(rows), [row for row in rows if row["batch"] is None]
    decoded = ([r["case"], *(_cell(r, v, "decode_ms") for v in VARIANTS)] for r in good)
    counted = (line for row in good for line in _count_rows(row))
    prefills = (_ttft_row(row) for row in rows if row["batch"] is not None)
    tables = {
        "Time to first token, ms": [TIMES, *prefills],
        "Decoding, ms per token": [["case", *VARIANTS], *decoded],
        "Counted in one prefill": [["case", "variant", *COUNTS, "peak", "KV cache"], *counted],
    }
    shown = [(title, table, []) for title, table in tables.items() if len(table) > 1]
    return [*shown, ("", [], [*map(verdict, searches), *worst_lines(rows)])]


SAVED = {
    "visual tokens, average of layers": lambda row: row["average"] / row["tokens"],
    "time to first token, pictures encoded before": lambda r: median(r, PACKED, "of_unpatched"),
    "… unpatched, with a prompt of as many tokens": lambda row: median(row, NATIVE, "of_unpatched"),
    "KV cache, padded": lambda r: r["ways"][PADDED]["kv_bytes"] / r["ways"][UNPATCHED]["kv_bytes"],
}


def savings(records: Iterable[dict]) -> str:
    """The README's first table: the default plan on the first device that has it."""
    for record in records:
        found = {row["keep"]: row for row in measured(record["rows"])
                 if row["preset"] == "divprune+random" and row["batch"] == 1}  # fmt: skip
        if cases := [found[keep] for keep in (0.5, 0.25) if keep in found]:
            first, run = cases[0], record["runs"][-1]
            body = [[name, "1.00", *(f"{of(r):.2f}" for r in cases)] for name, of in SAVED.items()]
            head = ["share of unpatched", "full", *(f"keep {r['keep']:g}" for r in cases)]
            where = f"packed, {run['device']}{', one thread' * on_cpu(record)}; `{run['command']}`"
            what = f"{first['model']} with random weights, {first['tokens']} visual tokens"
            table = markdown([head, *body], ["---", *["---:"] * (len(cases) + 1)])
            return f"{what}, {where}:\n\n{table}"
    return "Not measured yet."


def status(records: Sequence[dict]) -> str:
    """Where the kernels have been timed."""
    gpus = dict.fromkeys(r["runs"][-1]["device"] for r in records if not on_cpu(r))
    timed = f"timed on {', '.join(gpus)}" if gpus else "not yet timed on one"
    return f"**Status:** compiled and tested without a GPU; {timed}."


def missed(row: dict) -> list[str]:
    """Which targets a case of `bench_overhead.py` misses."""
    said, share = [], row["select_and_gather"]
    for path in (PADDED, PACKED):
        ratio, most = row[f"{path}_of_native"]["median"], TARGETS[path, row["batch"]]
        said += [f"{path} {ratio:.3f} times native, at most {most} wanted"] * (ratio > most)
    over = f"select + gather {share:.1%} of the prefill, at most {SHARE:.0%} wanted"
    return said + [over] * (share > SHARE)


def overhead(record: dict, table: Callable[[list[list[str]]], str] = markdown) -> str:
    """All cases, and which miss their targets."""
    run, rows = record["runs"][-1], [row for row in record["rows"] if row["op"] == OVERHEAD]
    ratios = [title for path in (PADDED, PACKED) for title in (path, "p20-p80")]
    lines = [["batch", "plan", "unpatched ms", "native ms", *ratios, "auto", "select + gather"]]
    for row in rows:
        cells = [f"{row[f'{name}_ms']['median']:.0f}" for name in ("unpatched", "native")]
        for ratio in (row[f"{path}_of_native"] for path in (PADDED, PACKED)):
            cells += [f"{ratio['median']:.3f}", spread(ratio, "{:.2f}".format)]
        share = f"{row['select_and_gather']:.1%}"
        lines.append([str(row["batch"]), row["plan"], *cells, row.get("auto", ""), share])
    rounds = min((row["rounds"] for row in rows), default=0)
    facts = (
        f"{run['device']}, torch {run['torch']}, transformers {run['transformers']}, commit "
        f"{run['commit']}; {run['note']}. Medians of {rounds} alternating rounds; padded and "
        "packed are times native, round by round."
    )
    parts = [facts, table(lines)]
    wrong = [f"- {verdict(row)}" for row in rows if missed(row)]
    return "\n\n".join([*parts, *(["\n".join(["Targets missed:", "", *wrong])] if wrong else [])])


# Pages and plots


def results(model: bool, folder: Path) -> dict[str, dict]:
    """File name → figures of one device, of whole models or of ops, GPUs first."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    found = {name: record for name, record in files.items()
             if "runs" in record and not name.startswith((OVERHEAD, HOST))
             and name.startswith("model_") == model}  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: on_cpu(item[1])))


def block_of(records: dict[str, dict], model: bool) -> str:
    """What docs/benchmarks.md says, a section per device."""
    none = all(map(on_cpu, records.values()))
    docs = [NO_GPU.format("whole model" if model else "op")] * none
    for name, record in records.items():
        docs.append(f"## {'Whole models on ' * model}{record['runs'][-1]['device']}")
        docs += [f"Measured are {ON_CPU}."] * (on_cpu(record) and not model)
        docs += [f"![{title}]({file})" for title, (file, _) in plots(name, model).items()]
        docs += [*([] if model else [op_summary(record)]), as_markdown(*sections(record))]
    return "\n\n".join(docs)


def with_block(text: str, name: str, block: str) -> str:
    """The text, with `block` between the markers of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin} and one {end}; put them where the tables belong")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def pages(folder: Path) -> dict[Path, str]:
    """README and docs as the result files in a folder determine them."""
    ops, models = results(False, folder), results(True, folder)
    costs = {
        name: made(json.loads(file.read_text()), markdown) if file.exists() else "Not measured yet."
        for name, made in ((OVERHEAD, overhead), (HOST, host))
        for file in [folder / f"{name}_cpu.json"]
    }
    told, saved = status([*models.values(), *ops.values()]), savings(models.values())
    blocks = [(README, "status", told), (README, "savings", saved)]
    blocks += [(DOCS, name, block) for name, block in costs.items()]
    blocks += [(DOCS, OPS, block_of(ops, False)), (DOCS, MODELS, block_of(models, True))]
    found = {path: path.read_text() for path, *_ in blocks}
    for path, name, block in blocks:
        found[path] = with_block(found[path], name, block)
    return found


def disagreements(folder: Path) -> list[str]:
    """What in README and docs differs from the result files in a folder."""
    stale = [path.name for path, text in pages(folder).items() if path.read_text() != text]
    drawn = [plots(name, model) for model in (False, True) for name in results(model, folder)]
    files = [DOCS.parent / file for some in drawn for file, _ in some.values()]
    wrong = [f"{name} is not what bench/results says: make report" for name in stale]
    return wrong + [f"docs/{file.name} is missing" for file in files if not file.exists()]


def plots(name: str, model: bool) -> dict[str, tuple[str, Callable]]:
    """Title → file beside the page that shows it, and what draws it."""
    if model:
        return {
            "Time to first token against the tokens kept": (f"ttft_{name}.png", _draw_ttft),
            "Packed against unpatched, by visual tokens": (f"break_even_{name}.png", _draw_search),
        }
    return {"How many times faster, case by case": (f"speedup_{name}.png", _draw_speedup)}


def draw(name: str, record: dict, model: bool, folder: Path) -> None:
    """All plots of a device."""
    from vtfast.information import plotting as plot

    for file, figure_of in plots(name, model).values():
        figure = figure_of(plot, record)
        plot.set_heading(figure, record["runs"][-1]["device"])
        figure.savefig(folder / file, dpi=110, metadata={"Software": None})


def _draw_speedup(plot, record: dict):
    ratios = {f"{r['op']}: {r['case']}": times_faster(r, BASELINES, metric_of(r))
              for r in record["rows"] if metric_of(r)}  # fmt: skip
    figure, (axes,) = plot.panels(1, 1, 9, 0.22 * len(ratios) + 0.7)
    colours = [plot.COLOURS[0] if x >= 1 else plot.MARK for x in ratios.values()]
    axes.barh(list(ratios), [x - 1 for x in ratios.values()], left=1, color=colours)
    axes.set_xscale("log", base=2, subs=[])
    plot.set_title(axes, "times faster than the best baseline (orange: slower)")
    axes.axvline(1, color=plot.INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _draw_ttft(plot, record: dict):
    """A panel for every model and batch: milliseconds against keep."""
    groups: dict[tuple, list[dict]] = {}
    for row in measured(record["rows"]):
        groups.setdefault((row["model"], row["batch"], row["tokens"]), []).append(row)
    figure, axes = plot.panels(max(1, len(groups)), 1, 4.5, 4)
    for panel, ((model, batch, tokens), rows) in zip(axes, groups.items(), strict=False):
        preset = rows[0]["preset"]
        rows = sorted((r for r in rows if r["preset"] == preset), key=lambda r: r["keep"])
        styles = zip(VARIANTS, (":", "-.", "--", "-", "-"), plot.COLOURS, strict=False)
        for variant, style, colour in styles:
            points = [(r["keep"], ms) for r in rows if (ms := median(r, variant, "ttft_ms"))]
            if points:
                ends = zip(*points, strict=True)
                panel.plot(*ends, style, marker=".", color=colour, label=variant)
        plot.set_title(panel, f"{model}, batch {batch},\n{tokens} tokens, {preset}")
        panel.set(xlabel="keep", ylim=(0, None))
    axes[0].set_ylabel("ms to the first token")
    shown = axes[0].get_legend_handles_labels()
    plot.add_legend(figure, *shown, loc="outside lower center", ncols=5)
    return figure


def _draw_search(plot, record: dict):
    """Packed over unpatched against visual tokens, a line for every plan and model."""
    figure, (panel,) = plot.panels(1, 1, 9, 4)
    for number, row in enumerate(measured(record["rows"], batched=False)):
        points = [(p["tokens"], p["of_unpatched"]["median"]) for p in row["points"]]
        colour = plot.COLOURS[number % len(plot.COLOURS)]
        label = row["case"].split(", ")[0]
        panel.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
    panel.axhline(1, color=plot.INK, linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="visual tokens of the one picture", ylabel="packed / unpatched, first token")
    plot.add_legend(panel)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description="Write tables and plots from bench/results.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        print(*(wrong := disagreements(RESULTS)) or ["README and docs agree"], sep="\n")
        return int(bool(wrong))
    for path, text in pages(RESULTS).items():
        path.write_text(text)
    for model in (False, True):
        for name, record in results(model, RESULTS).items():
            draw(name, record, model, DOCS.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
