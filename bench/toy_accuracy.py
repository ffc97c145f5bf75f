"""Measure the accuracy of the bundled models at several budgets, for README and docs/accuracy.md.

Greedy `generate` on pinned drawn scenes, exact match, the default plan at each budget, with 95 %
Wilson intervals; ten minutes a model on two cores. Scenes are of the sizes that the model was
trained on, in turn; tokens and multiply-adds are means over those sizes.
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
from vtfast.toy.model import family_of
from vtfast.toy.scene import GRID

RESULT = RESULTS / "toy_accuracy.json"
KEEPS = (1.0, 0.75, 0.5)
TITLES = {
    "llava": "LLaVA, 12 layers, 64 visual tokens",
    "qwen": "Qwen2.5-VL, 8 layers, pictures of eight sizes with 64 to 96 visual tokens",
    "qwen3": "Qwen3-VL, 8 layers, the same pictures",
}


def measure(name: str, n: int, seed: int) -> dict:
    """Accuracy of every task at every budget, and the tokens and FLOPs of each budget."""
    model, processor = vtfast.toy.load(name)
    layers, sizes = model.config.text_config.num_hidden_layers, family_of(model).SIZES
    tokens = [width * height // GRID**2 for width, height in sizes]
    columns = []
    for keep in KEEPS:
        with vtfast.patch(model, keep=keep) as handle:
            plan = handle.plan
            exact = {t: accuracy(model, processor, t, n, seed, True, sizes) for t in TASKS}
        flops = mean(plan.flops_ratio(model.config, count, 12) for count in tokens)
        average = mean(plan.average_tokens(count, layers) for count in tokens)
        column = {"keep": keep, "plan": str(plan), "average_tokens": average, "accuracy": exact}
        stages = [plan.counts(count) for count in tokens]
        columns.append({**column, "tokens_after_each_stage": stages, "prefill_flops": flops})
    facts = versions(f"python bench/toy_accuracy.py --model {name}")
    facts |= {"python": platform.python_version(), "scenes_per_task": n, "seed": seed}
    return {**facts, "sizes": sizes, "columns": columns}


def table(result: dict, ranges: bool = True) -> str:
    """The Markdown table of one model."""
    n, columns = result["scenes_per_task"], result["columns"]
    titles = ["full" if c["keep"] == 1 else f"keep {c['keep']:g}" for c in columns]
    rows = [["exact match, %", *titles]]
    for task in TASKS:
        shares = [c["accuracy"][task] for c in columns]
        bounds = [wilson(share, n) for share in shares]
        shown = [f" ({100 * low:.1f} to {100 * high:.1f})" * ranges for low, high in bounds]
        cells = [f"{100 * share:.1f}{text}" for share, text in zip(shares, shown, strict=True)]
        rows.append([task.replace("_", " "), *cells])
    rows.append(["visual tokens, average", *(f"{c['average_tokens']:.1f}" for c in columns)])
    rows.append(["prefill multiply-adds", *(f"{c['prefill_flops']:.2f}" for c in columns)])
    return markdown(rows, ["---", *["---:"] * len(columns)])


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", choices=TITLES, help="measure this one alone (default: all)")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes per task (default 1000)")
    parser.add_argument("--seed", type=int, default=99, help="seed of the scenes (default 99)")
    parser.add_argument("--check", action="store_true", help="only compare README and JSON")
    args, results = parser.parse_args(), json.loads(RESULT.read_text())
    if not args.check:
        for name in [args.model] if args.model else TITLES:
            results[name] = measure(name, args.scenes, args.seed)
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
    tables = [f"{title}:\n\n{table(results[name])}" for name, title in TITLES.items()]
    blocks = {(DOCS.with_name("accuracy.md"), "toy accuracy"): "\n\n".join(tables),
              (README, "meaning"): table(results["llava"], ranges=False)}  # fmt: skip
    fresh = {path: with_block(path.read_text(), n, b) for (path, n), b in blocks.items()}
    if args.check:
        stale = [path.name for path, text in fresh.items() if path.read_text() != text]
        print(f"{stale} differ: run without --check" if stale else "README and docs agree")
        return int(bool(stale))
    for path, text in fresh.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
