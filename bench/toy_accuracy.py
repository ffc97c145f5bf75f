"""Measure the accuracy of the bundled models at several budgets, for README and docs/accuracy.md.

Greedy `generate` on pinned drawn scenes, exact match, the default plan, 95 % Wilson intervals; ten
minutes a model on two cores. Tokens and multiply-adds are means over the sizes of training. Makes
the tables of docs/choosing.md too, from what `python -m vtfast.toy.methods` measured.
"""

import argparse
import json
import platform
import sys
from statistics import mean

from bench_information import versions
from report import DOCS, README, RESULTS, markdown, with_block

import vtfast
from vtfast.evaluation import wilson
from vtfast.toy import TASKS
from vtfast.toy.evaluate import accuracy
from vtfast.toy.methods import METHODS, SHARES
from vtfast.toy.model import family_of
from vtfast.toy.scene import GRID

RESULT, CHOSEN = RESULTS / "toy_accuracy.json", RESULTS / "choosing.json"
KEEPS, N, SEED = (1.0, 0.75, 0.5), 1000, 99  # N: scenes per task
TITLES = {
    "llava": "LLaVA, 12 layers, 64 visual tokens",
    "qwen": "Qwen2.5-VL, 8 layers, pictures of eight sizes with 64 to 96 visual tokens",
    "qwen3": "Qwen3-VL, 8 layers, the same pictures",
}


def measure(name: str) -> dict:
    """Accuracy of every task at every budget, and the tokens and FLOPs of each budget."""
    model, processor = vtfast.toy.load(name)
    layers, sizes = model.config.text_config.num_hidden_layers, family_of(model).SIZES
    tokens = [width * height // GRID**2 for width, height in sizes]
    columns = []
    for keep in KEEPS:
        with vtfast.patch(model, keep=keep) as handle:
            plan = handle.plan
            exact = {t: accuracy(model, processor, t, N, SEED, True, sizes) for t in TASKS}
        flops = mean(plan.flops_ratio(model.config, count, 12) for count in tokens)
        average = mean(plan.average_tokens(count, layers) for count in tokens)
        column = {"keep": keep, "plan": str(plan), "average_tokens": average, "accuracy": exact}
        stages = [plan.counts(count) for count in tokens]
        columns.append({**column, "tokens_after_each_stage": stages, "prefill_flops": flops})
    facts = versions(f"python bench/toy_accuracy.py --model {name}")
    facts |= {"python": platform.python_version(), "scenes_per_task": N, "seed": SEED}
    return facts | {"sizes": sizes, "columns": columns}


def table(result: dict, ranges: bool = True) -> str:
    """The Markdown table of one model."""
    n, columns = result["scenes_per_task"], result["columns"]
    titles = ("full" if c["keep"] == 1 else f"keep {c['keep']:g}" for c in columns)
    rows = [["exact match, %", *titles]]
    for task in TASKS:
        rows.append([task.replace("_", " ")])
        for share in (c["accuracy"][task] for c in columns):
            low, high = (100 * bound for bound in wilson(share, n))
            rows[-1].append(f"{100 * share:.1f}" + f" ({low:.1f} to {high:.1f})" * ranges)
    rows.append(["visual tokens, average", *(f"{c['average_tokens']:.1f}" for c in columns)])
    rows.append(["prefill multiply-adds", *(f"{c['prefill_flops']:.2f}" for c in columns)])
    return markdown(rows, ["---", *["---:"] * len(columns)])


def method_tables(result: dict) -> str:
    """A Markdown table of one model for each share, with a row for each method."""
    n, right, shown = result["scenes_per_task"], result["right"], []
    for share in SHARES:
        names = {name: f"{name} {share:g}" for name in METHODS}
        rows = [["right, %", *(task.replace("_", " ") for task in TASKS), "mean"]]
        for name, plan in {"unpruned": "unpruned", **names, "none": "none"}.items():
            rows.append([name])
            for found in (right[task] for task in TASKS):
                low, high = (100 * bound for bound in wilson(found[plan] / n, n))
                cell = f"{100 * found[plan] / n:.0f} ({low:.0f} to {high:.0f})"
                worse = high < 100 * wilson(found[names["random"]] / n, n)[0] and name in names
                best = found[plan] == max(map(found.get, names.values())) and name in names
                rows[-1].append(f"**{cell}**" if best else cell + " ↓" * worse)
            rows[-1].append(f"{mean(100 * right[task][plan] / n for task in TASKS):.0f}")
        table = markdown(rows, ["---", *["---:"] * (len(TASKS) + 1)])
        shown.append(f"{100 * share:g} % kept:\n\n{table}")
    return "\n\n".join(shown)


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=TITLES, help="measure this one alone (default: all)")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--check", action="store_true", help="only compare pages and JSON")
    args, results = parser.parse_args(), json.loads(RESULT.read_text())
    if not (args.check or args.tables):
        results |= {name: measure(name) for name in ([args.model] if args.model else TITLES)}
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
    tables = [f"{title}:\n\n{table(results[name])}" for name, title in TITLES.items()]
    found = json.loads(CHOSEN.read_text()).items()
    chosen = (f"### {TITLES[name]}\n\n{method_tables(one)}" for name, one in found)
    blocks = {(DOCS.with_name("accuracy.md"), "toy accuracy"): "\n\n".join(tables),
              (DOCS.with_name("choosing.md"), "methods"): "\n\n".join(chosen),
              (README, "meaning"): table(results["llava"], ranges=False)}  # fmt: skip
    fresh = {path: with_block(path.read_text(), n, b) for (path, n), b in blocks.items()}
    stale = [path for path, text in fresh.items() if path.read_text() != text]
    if args.check:
        print(f"{stale} differ: run with --tables" if stale else "pages and JSON agree")
        return int(bool(stale))
    for path in stale:
        path.write_text(fresh[path])


if __name__ == "__main__":
    sys.exit(main())
