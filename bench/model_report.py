"""What README and docs say about whole models, and the plots: from `results/model_*.json` alone.

The README shows GPUs only; a CPU's figures are in the docs. The case in which vtfast does worst is
always among those shown.
"""

import json
from pathlib import Path

import model_figures
from figures import digits, markdown
from model_figures import measured, median, prefills, searches
from prefills import FLASH, NATIVE, PACKED, PADDED, UNPATCHED

NAME = "whole model speed"  # of the markers
NO_GPU = (
    "**No whole model has been timed on a GPU yet**, so nothing is claimed about how much faster a "
    "real one gets."
)
HEAD = ["model", "plan", "batch", "visual tokens", "unpatched ms", "natively shorter ms",
        "vtfast ms", "times faster", "of native"]  # fmt: skip
MAIN = (0.5, 0.25)  # keeps shown in the README, at the largest batch of the core grid


def results(folder: Path) -> dict[str, dict]:
    """File name → figures of one device, GPUs first."""
    paths = sorted(folder.glob("model_*.json"))
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    return dict(sorted(found.items(), key=lambda item: on_cpu(item[1])))


def on_cpu(record: dict) -> bool:
    return record["runs"][-1]["device"].endswith("(CPU)")


def line(row: dict, note: str = "") -> list[str]:
    """A case in the README: packed against the faster unpatched attention, and against native."""
    unpatched = min(filter(None, (median(row, way, "ttft_ms") for way in (UNPATCHED, FLASH))))
    of_unpatched, of_native = (median(row, PACKED, x) for x in ("of_unpatched", "of_native"))
    return [
        row["model"],
        f"{row['preset']} {row['keep']:g}{note}",
        str(row["batch"]),
        f"{row['tokens']} → {row['average']:.0f}",
        digits(unpatched),
        *(digits(median(row, way, "ttft_ms")) for way in (NATIVE, PACKED)),
        f"{1 / of_unpatched:.2f}",
        f"{of_native:.2f}",
    ]


def short(record: dict) -> str:
    """A GPU in the README: the main cases, the worst one, and where a plan breaks even."""
    rows = [row for row in prefills(record["rows"]) if measured(row)]
    lines = [line(row) for row in rows if row["keep"] in MAIN and row["batch"] == 8]
    worst = max(rows, key=lambda row: median(row, PACKED, "of_unpatched"), default=None)
    if worst:
        lines.append(line(worst, f" (worst of {len(rows)} cases)"))
    run = record["runs"][-1]
    parts = [
        f"{run['device']}, torch {run['torch']}, transformers {run['transformers']}; "
        "random weights, true shapes; time to the first token, pictures encoded already:",
        markdown([HEAD, *lines]),
    ]
    said = [f"- {model_figures.search(row)}" for row in searches(record["rows"])]
    red = sum(bool(row["red"]) for row in record["rows"])
    said += [f"- RED: {red} cases gave wrong answers and were not timed"] if red else []
    return "\n\n".join([*parts, *(["\n".join(said)] if said else [])])


def readme_block(records: dict[str, dict]) -> str:
    gpus = [record for record in records.values() if not on_cpu(record)]
    link = "[docs/benchmarks.md](docs/benchmarks.md)"
    there = f"Figures of a small model on a CPU are in {link}." if records else ""
    return "\n\n".join(map(short, gpus)) if gpus else f"{NO_GPU} {there}".strip()


def docs_block(records: dict[str, dict]) -> str:
    parts = [] if any(not on_cpu(r) for r in records.values()) else [NO_GPU]
    for name, record in records.items():
        parts.append(f"## Whole models on {record['runs'][-1]['device']}")
        parts += [f"![{title}]({file})" for title, file in plots(name).items()]
        parts.append(model_figures.document(record))
    return "\n\n".join(parts)


def plots(name: str) -> dict[str, str]:
    """Title → file, beside the page that shows it."""
    return {
        "Time to first token against the tokens kept": f"ttft_{name}.png",
        "Packed against unpatched, by visual tokens": f"break_even_{name}.png",
    }


def draw(name: str, record: dict, folder: Path) -> None:
    """Both plots of a device."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    device = record["runs"][-1]["device"]
    for file, into in zip(plots(name).values(), (_ttft, _break_even), strict=True):
        figure = pyplot.figure(figsize=(9, 4), layout="constrained")
        into(figure, record["rows"])
        figure.suptitle(f"{device}: random weights", fontsize=9)
        figure.savefig(folder / file, dpi=110, metadata={"Software": None})
        pyplot.close(figure)


def _ttft(figure, rows: list[dict]) -> None:
    """A panel for every model and batch: milliseconds against keep, the native run as a line."""
    rows = [row for row in prefills(rows) if measured(row)]
    groups = dict.fromkeys((row["model"], row["batch"], row["tokens"]) for row in rows)
    axes = figure.subplots(1, max(1, len(groups)), squeeze=False)[0]
    styles = {UNPATCHED: ":", FLASH: "-.", NATIVE: "--", PADDED: "-", PACKED: "-"}
    for panel, (model, batch, tokens) in zip(axes, groups, strict=False):
        same = (model, batch, tokens)
        some = [r for r in rows if (r["model"], r["batch"], r["tokens"]) == same]
        preset = some[0]["preset"]
        some = sorted((r for r in some if r["preset"] == preset), key=lambda r: r["keep"])
        for way, style in styles.items():
            points = [(r["keep"], median(r, way, "ttft_ms")) for r in some]
            points = [point for point in points if point[1] is not None]
            if points:
                panel.plot(*zip(*points, strict=True), style, marker=".", label=way)
        panel.set_title(f"{model}, batch {batch}\n{tokens} visual tokens, {preset}", fontsize=7)
        panel.set(xlabel="keep", ylim=(0, None))
        panel.tick_params(labelsize=6)
    axes[0].set_ylabel("ms to the first token")
    axes[0].legend(fontsize=6)


def _break_even(figure, rows: list[dict]) -> None:
    """Packed over unpatched against visual tokens, a line for every plan and model."""
    panel = figure.subplots()
    for row in searches(rows):
        if measured(row):
            points = [(p["tokens"], p["of_unpatched"]["median"]) for p in row["points"]]
            panel.plot(*zip(*points, strict=True), marker=".", label=row["case"].split(", ")[0])
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="visual tokens of the one picture", ylabel="packed / unpatched, first token")
    panel.legend(fontsize=6)
