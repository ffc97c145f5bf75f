"""What `make test-families` found: counts by family and release, as JSON and as a table.

python tests/families_result.py build/families.xml docs/families.json docs/families.md
"""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import torch
import transformers

HEAD = """# Tests of every family

`make test-families` runs the model tests of `tests/runtime` with tiny random models of every family
beside LLaVA and Qwen2.5-VL: identity at `keep=1.0`, logits and tokens of the masked full-length
model, batches, beams, sampling, drafts, turns, static caches, clips, undoing, image hashes,
wrappers, training. Nothing of this ran on a GPU. A skipped test names what transformers or the
family cannot do; the reasons are counted below.
"""


def counted(report: Path, families: list[str]) -> dict[str, dict[str, int]]:
    """Tests by family and outcome; a skipped one counts under its reason."""
    found: dict[str, Counter[str]] = {name: Counter() for name in families}
    for case in ElementTree.parse(report).iter("testcase"):
        parts = re.split(r"[\[\]]", case.get("name", ""))
        named = [name for name in families if parts[1:2] and _names(parts[1], name)]
        outcome = "passed"
        for problem in case:
            if problem.tag in ("failure", "error"):
                outcome = "failed"
            elif problem.tag == "skipped":
                outcome = f"skipped: {problem.get('message', '').removeprefix('Skipped: ')}"
        for name in named:
            found[name][outcome] += 1
    return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def _names(case: str, family: str) -> bool:
    """Whether a test's parameters name a family, and not one whose name begins like it."""
    return re.search(rf"(^|-){re.escape(family)}(-(?!moe|next|onevision)|$)", case) is not None


def table(results: dict[str, dict[str, dict[str, int]]]) -> str:
    """The page, from counts by release and family."""
    reasons: Counter[str] = Counter()
    head = [f"transformers {release.split(',')[0]}" for release in results]
    rows = [["family", *head], ["---"] * (1 + len(head))]
    for name in sorted({name for of_release in results.values() for name in of_release}):
        cells = []
        for of_release in results.values():
            counts = of_release.get(name, {})
            skipped = {o[9:]: n for o, n in counts.items() if o.startswith("skipped: ")}
            cells.append(
                f"{counts.get('passed', 0)} passed, {sum(skipped.values())} skipped, "
                f"{counts.get('failed', 0)} failed"
            )
            reasons.update(skipped)
        rows.append([f"`{name}`", *cells])
    why = [["tests skipped", "because"], ["---", "---"]]
    why += [[str(n), reason] for reason, n in reasons.most_common()]
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in some) for some in (rows, why)]
    versions = f"Versions: {'; '.join(f'transformers {release}' for release in results)}."
    return "\n\n".join([HEAD.rstrip(), tables[0], versions, tables[1]]) + "\n"


def main(report: str, store: str, page: str, *families: str) -> None:
    results = json.loads(Path(store).read_text()) if Path(store).exists() else {}
    release = f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    results[release] = results.get(release, {}) | counted(Path(report), list(families))
    results = dict(sorted(results.items()))
    Path(store).write_text(json.dumps(results, indent=1) + "\n")
    Path(page).write_text(table(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
