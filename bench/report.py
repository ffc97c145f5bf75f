"""Write the speed tables of README and docs from `results/*.json`, and draw the plots.

    python bench/report.py            # after new results; `make report`
    python bench/report.py --check    # do README and docs show what the JSON says?

What stands between the markers is generated, losses included; nothing there is typed. A plot shows
every case: how many times faster than the best baseline, and how much of the roofline, which is
made of the ceilings measured in the same run, the op reaches. Whole models are `model_report`'s.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import figures
import model_report
import overhead_figures
from model_report import on_cpu

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README, DOCS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
NAME = "op speed"  # of the markers
NO_GPU = (
    "**No op has been timed on a GPU yet**, so there are no figures of the Triton kernels: neither "
    "that they are fast nor that they are not."
)
CPU = "the eager twins, which a CPU runs; the kernels are not in these figures"


def results(folder: Path = RESULTS) -> dict[str, dict]:
    """File name → figures of one device, GPUs first."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        if "runs" in record and not path.stem.startswith(("model_", overhead_figures.NAME)):
            found[path.stem] = record
    return dict(sorted(found.items(), key=lambda item: on_cpu(item[1])))


def ratio_cells(rows: list[dict], roles) -> list[str]:
    """Geometric mean and worst case."""
    found = [figures.times_faster(row, roles, figures.metric_of(row)) for row in rows]
    ratios = [ratio for ratio in found if ratio]
    if not ratios:
        return ["", ""]
    return [f"{statistics.geometric_mean(ratios):.2f}", f"{min(ratios):.2f}"]


def short(record: dict) -> str:
    """A device in the README: a line per op."""
    head = ["op", "cases", "x best rival", "worst", "x eager", "worst"]
    lines = [head]
    for op, rows in figures.by_op(record["rows"]).items():
        against = [ratio_cells(rows, roles) for roles in (figures.BASELINES, ["eager"])]
        red = [row for row in rows if row["red"]]
        cases = f"{len(rows)}, {len(red)} RED" if red else str(len(rows))
        lines.append([op, cases, *against[0], *against[1]])
    what = f" ({CPU})" if on_cpu(record) else ""
    facts = record["runs"][-1]
    return f"{facts['device']}, torch {facts['torch']}{what}:\n\n{figures.markdown(lines)}"


def readme_block(records: dict[str, dict]) -> str:
    parts = [] if any(not on_cpu(r) for r in records.values()) else [NO_GPU]
    parts += [short(record) for record in records.values()]
    return "\n\n".join(parts)


def docs_block(records: dict[str, dict]) -> str:
    parts = [] if any(not on_cpu(r) for r in records.values()) else [NO_GPU]
    for name, record in records.items():
        parts.append(f"## {record['runs'][-1]['device']}")
        if note := record["runs"][-1].get("note"):
            parts.append(f"{note[0].upper()}{note[1:]}. Measured are {CPU}.")
        parts.append(f"![How many times faster, case by case](speedup_{name}.png)")
        parts.append(f"![Share of the roofline, case by case](roofline_{name}.png)")
        parts.append(figures.document(record))
    return "\n\n".join(parts)


def with_block(text: str, block: str, name: str = NAME) -> str:
    """The text with what is between the markers of this name replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin} and one {end}; put them where the tables belong")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def pages(records: dict[str, dict], models: dict[str, dict]) -> dict[Path, str]:
    """Each page as it must be: about ops by `records`, about whole models by `models`."""
    blocks = {
        README: (readme_block(records), model_report.readme_block(models)),
        DOCS: (docs_block(records), model_report.docs_block(models)),
    }
    found = {
        path: with_block(with_block(path.read_text(), ops), whole, model_report.NAME)
        for path, (ops, whole) in blocks.items()
    }
    overhead = overhead_figures.block(RESULTS)
    return found | {DOCS: with_block(found[DOCS], overhead, overhead_figures.NAME)}


def draw(name: str, record: dict) -> None:
    """Both plots of a device, beside the page that shows them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in record["rows"] if figures.metric_of(row) and not row["red"]]
    names = [f"{row['op']}: {row['case']}" for row in rows]
    ratios = [figures.times_faster(r, figures.BASELINES, figures.metric_of(r)) for r in rows]
    device = record["runs"][-1]["device"]

    figure, axes = pyplot.subplots(figsize=(8, 0.17 * len(rows) + 1.2), layout="constrained")
    colours = ["tab:red" if ratio < 1 else "tab:green" for ratio in ratios]
    axes.barh(names, [ratio - 1 for ratio in ratios], left=1, color=colours)
    axes.set(xscale="log", title=f"{device}\ntimes faster than the best rival (red: slower)")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.tick_params(labelsize=6)
    figure.savefig(DOCS.parent / f"speedup_{name}.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for op, some in figures.by_op(rows).items():
        points = [position(row, record["runs"]) for row in some]
        axes.scatter(*zip(*points, strict=True), s=14, label=op)
    axes.set(
        xscale="log",
        yscale="log",
        title=f"{device}\nfloor / time: 1 is the roofline measured in the same run",
        xlabel="operations per byte at least",
        ylabel="share of the roofline",
    )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.legend(fontsize=7)
    figure.savefig(DOCS.parent / f"roofline_{name}.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def position(row: dict, runs: list[dict]) -> tuple[float, float]:
    """Operations per byte (at least 0.01, to be on the axis), and floor over time."""
    found = runs[row["run"]]["ceilings"]
    floor = max(
        row["nbytes"] / found["copy_gb_s"] / 1e6, row["flops"] / found["matmul_tflop_s"] / 1e9
    )
    return max(0.01, row["flops"] / row["nbytes"]), floor / figures.ours(
        row, figures.metric_of(row)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    records, models = results(), model_report.results(RESULTS)
    if options.check:
        wrong = disagreements(records, models)
        print(*wrong or ["README and docs agree with bench/results"], sep="\n")
        return int(bool(wrong))
    for path, text in pages(records, models).items():
        path.write_text(text)
    for name, record in models.items():
        model_report.draw(name, record, DOCS.parent)
    for name, record in records.items():
        draw(name, record)
    return 0


def disagreements(records: dict[str, dict], models: dict[str, dict]) -> list[str]:
    """What is not as `bench/results` says."""
    pairs = pages(records, models).items()
    stale = [path.name for path, text in pairs if path.read_text() != text]
    wrong = [f"{name} is not what bench/results says: make report" for name in stale]
    plots = [f"{kind}_{name}.png" for name in records for kind in ("speedup", "roofline")]
    plots += [file for name in models for file in model_report.plots(name).values()]
    return wrong + [f"docs/{p} is missing" for p in plots if not (DOCS.parent / p).exists()]


if __name__ == "__main__":
    sys.exit(main())
