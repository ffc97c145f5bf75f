"""Every pruning method on every task of the bundled models: what docs/choosing.md shows.

Each method keeps as many visual tokens of a picture, once, before the layer that its paper prunes
at. Exact match of greedy answers to pinned drawn scenes of the sizes that a model was trained on.

    python -m vtfast.toy.methods --out bench/results/choosing.json

A run that was stopped goes on with every question in its logs; where the logs lack a plan, their
questions are asked again under this one alone. It takes about a quarter of an hour a model on one
core of a CPU; models can run side by side.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers

from vtfast import __version__, toy
from vtfast.information import Dataset
from vtfast.information.answers import with_answers
from vtfast.information.records import Records, fingerprint
from vtfast.patching import patch
from vtfast.prune import Prune
from vtfast.toy.evaluate import dataset
from vtfast.toy.model import family_of

SHARES = (0.5, 0.25, 0.125)  # of the visual tokens, that a method keeps from its layer on
METHODS: Mapping[str, tuple[int, str, Mapping[str, object]]] = {  # layer, method, options
    "random": (0, "random", {}),
    "uniform": (0, "uniform", {}),
    "diversity": (0, "diversity", {}),
    "… centre": (0, "diversity", {"centre": True}),
    "… distinct, minmax": (0, "diversity", {"distinct": "minmax"}),
    "… distinct, sigmoid": (0, "diversity", {"distinct": "sigmoid"}),
    "… both, minmax": (0, "diversity", {"centre": True, "distinct": "minmax"}),
    "… both, sigmoid": (0, "diversity", {"centre": True, "distinct": "sigmoid"}),
    "cdpruner": (0, "cdpruner", {}),
    "… relevance=opposite": (0, "cdpruner", {"relevance": "opposite"}),
    "scope": (0, "scope", {}),
    "visionzip": (0, "visionzip", {}),
    "vispruner": (0, "vispruner", {}),
    "topk (layer 2)": (2, "topk", {}),
    "dart (layer 2)": (2, "dart", {}),
}
PLANS: Mapping[str, Sequence[Prune] | None] = {
    "unpruned": None,
    "none": [Prune(0, "drop", 0)],
    **{
        f"{name} {share:g}": [Prune(layer, method, share, **options)]
        for share in SHARES
        for name, (layer, method, options) in METHODS.items()
    },
}
_TOGETHER = 100  # questions of a batch


def measure(name: str, n: int = 500, seed: int = 99, logs: Path | None = None) -> dict[str, Any]:
    """Right answers of every plan of `PLANS` to n scenes of every task, as a dict for JSON.

    name: of a bundled model. logs: folder of the logs, made if needed.
    """
    model, processor = toy.load(name)
    right = {}
    for task in toy.TASKS:
        asked = dataset(processor, task, n, seed, family_of(model).SIZES)
        log = None if logs is None else logs / f"{name}-{task}.jsonl"
        right[task] = right_answers(model, asked, PLANS, log)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions |= {"vtfast": __version__, "machine": platform.machine()}
    command = f"python -m vtfast.toy.methods --model {name}"
    return {"command": command, **versions, "scenes_per_task": n, "seed": seed, "right": right}


def right_answers(
    model: Any,
    asked: Dataset,
    plans: Mapping[str, Sequence[Prune] | None],
    log: Path | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """How many answers are right under each plan (None: unpruned), to one data set; see
    `answered`."""
    found = answered(model, asked, plans, log, progress)
    return {name: sum(right) for name, right in found.items()}


def answered(
    model: Any,
    asked: Dataset,
    plans: Mapping[str, Sequence[Prune] | None],
    log: Path | None = None,
    progress: bool = True,
) -> dict[str, list[bool]]:
    """Whether each question of a data set is answered right, under each plan (None: unpruned).

    See `Encoded`. A run goes on with what is in `log`, also under more or other plans.
    """
    settings = {"measures": "right answers", "model": fingerprint(model)}
    records, n = Records(log, settings, asked, adds=True), len(asked)

    def left(numbers: list[int]) -> dict[str, Sequence[Prune] | None]:
        """The plans under which some of these questions have not been asked."""
        done = [records.done.get(number, {}) for number in numbers]
        told = {str(plan): plan for plan in plans.values()}
        return {key: plan for key, plan in told.items() if any(key not in d for d in done)}

    def measure(block: list[int]) -> list[dict[str, bool]]:
        return _right(model, asked, left(block), block)

    blocks = [list(range(first, min(first + _TOGETHER, n))) for first in range(0, n, _TOGETHER)]
    keys = {str(plan) for plan in plans.values()}
    records.fill(blocks, measure, progress, "question", lambda record: keys <= record.keys())
    done, _ = records.finished()
    return {name: [record[str(plan)] for record in done] for name, plan in plans.items()}


def _right(
    model: Any, asked: Dataset, plans: Mapping[str, Sequence[Prune] | None], block: list[int]
) -> list[dict[str, bool]]:
    """Whether each question of a block is answered right, under each of these plans."""
    encoded = Encoded(model, asked, block)
    found = {name: encoded.right(plan) for name, plan in plans.items()}
    return [{name: right[i] for name, right in found.items()} for i in range(len(block))]


class Encoded:
    """Some questions with their true answers, whose pictures a model has encoded once.

    Greedy decoding gives an answer where each of its tokens, the end included, is the best one
    after those before it. So a single forward over prompt and answer tells, in which methods see
    the prompt alone.
    """

    @torch.no_grad()
    def __init__(self, model: Any, asked: Dataset, block: Sequence[int]) -> None:
        batch = asked.batch(block, model.device)
        call, _ = with_answers(batch.inputs, batch.answers, model.device)
        columns, inner = call["input_ids"].shape[1], model.model
        names = call.keys() & signature(inner.get_image_features).parameters.keys()
        with patch(model, [Prune(0, "visionzip", 0.5), Prune(1, "random", 0.5)]):  # notes all
            features = inner.get_image_features(**{name: call[name] for name in names})
        del call["pixel_values"]
        self._model, self._answers = model, batch.answers
        self._ends = [columns + 1 - len(answer) for answer in batch.answers]
        self._call = call | {"mm_encoder_outputs": {"image": features}, "use_cache": False}

    @torch.no_grad()
    def right(self, plan: Sequence[Prune] | None) -> list[bool]:
        """Whether each question is answered right under a plan (None: unpruned)."""
        longest = max(map(len, self._answers))
        told: dict[str, Any] = {"logits_to_keep": longest}
        if plan is not None:
            told["prompt_length"] = self._ends
        with nullcontext() if plan is None else patch(self._model, plan):
            best = self._model(**self._call, **told).logits.argmax(-1).tolist()
        pairs = zip(best, self._answers, strict=True)
        return [said[longest - len(answer) :] == answer for said, answer in pairs]


def main() -> None:
    """Measure and write a JSON object with an entry for each model."""
    parser = argparse.ArgumentParser(
        prog="python -m vtfast.toy.methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("llava", "qwen", "qwen3")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; other models stay")
    parser.add_argument("--model", choices=names, help="measure this one alone (default: all)")
    parser.add_argument("--scenes", type=int, default=500, help="scenes per task (default 500)")
    parser.add_argument("--seed", type=int, default=99, help="seed of the scenes (default 99)")
    parser.add_argument(
        "--logs", type=Path, default=Path("build/choosing"), help="default build/choosing"
    )
    given = parser.parse_args()
    if given.scenes < 1:
        parser.error(f"--scenes {given.scenes}: expected 1 or more")
    if not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: there is no folder {given.out.parent}; make it first")
    given.logs.mkdir(parents=True, exist_ok=True)
    for name in [given.model] if given.model else names:
        found = measure(name, given.scenes, given.seed, given.logs)
        # Read late: another model may have been measured meanwhile.
        known = json.loads(given.out.read_text()) if given.out.exists() else {}
        given.out.write_text(json.dumps({**known, name: found}, indent=1) + "\n")
        print(f"{name}: {len(PLANS)} plans on {given.scenes} scenes a task, in {given.out}")


if __name__ == "__main__":
    main()
