"""Accuracy of the bundled LLaVA at several budgets: the table in the README.

    python bench/toy_accuracy.py            # about ten minutes on 2 CPU cores
    python bench/toy_accuracy.py --check    # does the README show what the JSON says?

Greedy `generate` on pinned drawn scenes, exact match, the default plan (divprune+random at the
checkpoint's measured horizon) at each budget, with 95 % Wilson intervals. Everything goes to
`results/toy_accuracy.json`; the README's table is written from that file, losses included.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
import transformers

import vtfast
from vtfast.toy import TASKS
from vtfast.toy.evaluate import accuracy

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "toy_accuracy.json"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- toy accuracy: begin -->", "<!-- toy accuracy: end -->"
KEEPS = (1.0, 0.75, 0.5)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share of n trials."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return centre - half, centre + half


def measure(n: int, seed: int) -> dict:
    """Accuracies of every task at every budget, and what each budget comes to."""
    model, processor = vtfast.toy.load("llava")
    layers, tokens = model.config.text_config.num_hidden_layers, model.config.image_seq_length
    columns = []
    for keep in KEEPS:
        with vtfast.patch(model, keep=keep) as handle:
            columns.append(
                {
                    "keep": keep,
                    "plan": str(handle.plan),
                    "tokens_after_each_stage": handle.plan.counts(tokens),
                    "average_tokens": handle.plan.average_tokens(tokens, layers),
                    "prefill_flops": handle.plan.flops_ratio(model.config, tokens, 12),
                    "accuracy": {t: accuracy(model, processor, t, n, seed, True) for t in TASKS},
                }
            )
    return {
        "command": "python bench/toy_accuracy.py",
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "vtfast": vtfast.__version__,
        "scenes_per_task": n,
        "seed": seed,
        "columns": columns,
    }


def table(result: dict) -> str:
    """The README's Markdown table."""
    n, columns = result["scenes_per_task"], result["columns"]
    titles = ["full" if c["keep"] == 1 else f"keep {c['keep']:g}" for c in columns]
    rows = [["exact match, %", *titles], ["---", *("---:" for _ in titles)]]
    for task in TASKS:
        cells = []
        for column in columns:
            share = column["accuracy"][task]
            low, high = wilson(share, n)
            cells.append(f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        rows.append([task.replace("_", " "), *cells])
    rows.append(["visual tokens, average", *(f"{c['average_tokens']:.1f}" for c in columns)])
    rows.append(["prefill multiply-adds", *(f"{c['prefill_flops']:.2f}" for c in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=1000, help="scenes per task (default 1000)")
    parser.add_argument("--seed", type=int, default=99, help="seed of the scenes (default 99)")
    parser.add_argument("--check", action="store_true", help="only compare README and JSON")
    args = parser.parse_args()
    if not args.check:
        RESULT.write_text(json.dumps(measure(args.scenes, args.seed), indent=2) + "\n")
    text = README.read_text()
    head, rest = text.split(BEGIN)
    shown, tail = rest.split(END)
    wanted = f"\n{table(json.loads(RESULT.read_text()))}\n"
    if args.check:
        print(
            "README agrees"
            if shown == wanted
            else "README differs from the JSON: run without --check"
        )
        return int(shown != wanted)
    README.write_text(head + BEGIN + wanted + END + tail)
    print(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
