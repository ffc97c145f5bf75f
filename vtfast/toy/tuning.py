"""Is what `vtfast.tune` promises kept? Its search, repeated on answers that were recorded once.

    python -m vtfast.toy.tuning record bench/results/tuning_answers.json.gz
    python -m vtfast.toy.tuning check bench/results/tuning_answers.json.gz

`record` asks a bundled model every question under every plan of a small space: an hour on one core.
`check` draws questions from these a thousand times, tunes on them, and counts how often the plan
found loses more than the tolerance of the questions that were not drawn, what it costs beside that
of an exhaustive search of the same space, and how many answers both take. It prints the table of
docs/tuning.md; two minutes.
"""

import argparse
import base64
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from vtfast import toy
from vtfast.information.progress import steps
from vtfast.inputs.data import Dataset
from vtfast.plan import Plan
from vtfast.plan_file import stage_of, stage_record
from vtfast.toy.evaluate import dataset
from vtfast.toy.methods import answered
from vtfast.toy.model import family_of
from vtfast.tuning.search import Counts, search
from vtfast.tuning.space import Costs, space

MODEL, SCENES, SEED = "qwen3", 834, 31  # scenes of each task
METHODS, KEEPS = ("diversity", "random", "topk"), (0.5, 0.25, 0.125, 0.0625)
CONFIDENCE, ROUNDS = 0.95, 1000
SETTINGS = ((0.01, 2000), (0.05, 2000), (0.1, 2000))  # tolerance, questions drawn
_FULL = "unpruned"


def record(logs: Path) -> dict[str, Any]:
    """Which questions of all tasks are answered right under each plan of the space, for JSON."""
    model, processor = toy.load(MODEL)
    layers, horizon = model.config.text_config.num_hidden_layers, model.config.vtfast_horizon
    plans = space(layers, horizon, METHODS, KEEPS)
    named = {_FULL: None, **{plan.name: plan.stages for plan in plans}}
    right: dict[str, list[bool]] = {name: [] for name in named}
    sizes: Counter[tuple[int, int, int]] = Counter()
    for task in toy.TASKS:
        asked = dataset(processor, task, SCENES, SEED, family_of(model).SIZES)
        sizes.update(sizes_of(model, asked))
        for name, one in answered(model, asked, named, logs / f"{MODEL}-{task}.jsonl").items():
            right[name] += one
    costs = Costs(model.config, sizes)
    return {
        "model": MODEL,
        "tasks": list(toy.TASKS),
        "scenes_per_task": SCENES,
        "seed": SEED,
        "layers": layers,
        "horizon": horizon,
        "plans": [[stage_record(stage) for stage in plan.stages] for plan in plans],
        "flops": [costs.flops(plan) for plan in plans],
        "right": {name: _packed(one) for name, one in right.items()},
    }


def sizes_of(model: Any, asked: Dataset) -> Iterator[tuple[int, int, int]]:
    """Of every question what `Costs` takes: visual tokens, pictures, other tokens."""
    for number in range(len(asked)):
        ids = asked.batch([number]).inputs["input_ids"]
        visual = int((ids == model.config.image_token_id).sum())
        yield visual, 1, ids.numel() - visual


def _packed(right: Sequence[bool]) -> str:
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def compared(full: np.ndarray, own: np.ndarray) -> Counts:
    """Right answers under a plan, bool [n], against those of the unpruned model."""
    right, both = int(full.sum()), int((full & own).sum())
    return right - both, right, int(own.sum()) - both, len(full) - right


class Recorded:
    """The recorded answers, plans cheapest first.

    Attributes:
        right: bool [plans, questions]. full: bool [questions], of the unpruned model.
        flops: fp64 [plans].
    """

    def __init__(self, found: dict[str, Any]) -> None:
        n = found["scenes_per_task"] * len(found["tasks"])
        order = np.argsort(found["flops"], kind="stable")
        self.plans = [Plan(tuple(map(stage_of, found["plans"][i]))) for i in order]
        self.flops = np.array(found["flops"])[order]
        bits = [np.frombuffer(base64.b64decode(one), np.uint8) for one in found["right"].values()]
        every = np.unpackbits(np.array(bits), axis=1)[:, :n].astype(bool)
        self.full, self.right = every[0], every[1:][order]

    def counts(self, plan: int, questions: Sequence[int]) -> Counts:
        """Answers of a plan to these questions against those of the unpruned model."""
        return compared(self.full[questions], self.right[plan, questions])

    def loss(self, plan: int, questions: Sequence[int]) -> float:
        """The share of the answers to these questions that the plan loses."""
        lost, _, gained, _ = self.counts(plan, questions)
        return (lost - gained) / len(questions)


@dataclass(frozen=True)
class Checked:
    """What many searches found, each on questions of its own, and how well it held.

    Attributes:
        broken: share of the searches whose plan loses more than `max_loss` of the other questions.
        none: share of the searches that found no plan.
        cost, most_cost: FLOPs of the plan, as a share of those that an exhaustive search finds by
            the same questions; the mean and the most.
        over_best: mean of the FLOPs, as a share of those of the cheapest plan that loses little
            enough of all recorded answers.
        answers, most_answers: that a search takes, as a share of an exhaustive one; mean, most.
    """

    max_loss: float
    drawn: int
    searches: int
    broken: float
    none: float
    cost: float
    most_cost: float
    over_best: float
    answers: float
    most_answers: float


def once(
    recorded: Recorded, drawn: Sequence[int], max_loss: float, exhaustive: bool = False
) -> tuple[int | None, int]:
    """The plan found on the drawn questions, and how many answers that takes."""
    most: dict[tuple[int, bool], int] = {}
    half = len(drawn) // 2

    def ask(plan: int, questions: Sequence[int]) -> Counts:
        part = plan, questions[0] == drawn[half]
        most[part] = max(most.get(part, 0), len(questions))
        return recorded.counts(plan, questions)

    given = drawn[:half], drawn[half:], max_loss, CONFIDENCE
    found = search(recorded.flops.tolist(), ask, *given, exhaustive=exhaustive)
    return min(found.passed, default=None), len(drawn) + sum(most.values())


def check(
    recorded: Recorded, max_loss: float, drawn: int, rounds: int, progress: bool = True
) -> Checked:
    """Tune that often, each time on so many questions."""
    n, whole = len(recorded.full), (1 + len(recorded.plans)) * drawn
    broken = none = 0
    costs, found, answers = [], [], []
    kept = (
        number
        for number in range(len(recorded.plans))
        if recorded.loss(number, range(n)) <= max_loss
    )
    least = recorded.flops[next(kept)]
    with steps(progress, f"tolerance {max_loss:g}", rounds, "search") as tick:
        for number in range(rounds):
            order = np.random.default_rng(number).permutation(n).tolist()
            plan, took = once(recorded, order[:drawn], max_loss)
            best, _ = once(recorded, order[:drawn], max_loss, exhaustive=True)
            answers.append(took / whole)
            if plan is None or best is None:
                none += plan is None
            else:
                found.append(float(recorded.flops[plan] / least))
                costs.append(float(recorded.flops[plan] / recorded.flops[best]))
            broken += plan is not None and recorded.loss(plan, order[drawn:]) > max_loss
            tick()
    return Checked(
        max_loss,
        drawn,
        rounds,
        broken / rounds,
        none / rounds,
        mean(costs or [math.nan]),
        max(costs, default=math.nan),
        mean(found or [math.nan]),
        mean(answers),
        max(answers),
    )


def table(found: Sequence[Checked]) -> str:
    """What was checked, as the Markdown table of docs/tuning.md."""
    head = (
        *("tolerance", "questions", "searches", "promise broken", "none found"),
        *("FLOPs, of exhaustive", "FLOPs, of the best", "answers, of exhaustive"),
    )
    rows = [
        (
            f"{100 * one.max_loss:g} %",
            str(one.drawn),
            str(one.searches),
            f"{100 * one.broken:.1f} %",
            f"{100 * one.none:.1f} %",
            f"{one.cost:.3f} (at most {one.most_cost:.3f})",
            f"{one.over_best:.2f}",
            f"{100 * one.answers:.1f} % (at most {100 * one.most_answers:.1f} %)",
        )
        for one in found
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def read(path: Path) -> Recorded:
    """The answers that `record` wrote."""
    with gzip.open(path) as file:
        return Recorded(json.load(file))


def main() -> None:
    """Record the answers, or check the promise on them."""
    parser = argparse.ArgumentParser(
        prog="python -m vtfast.toy.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("do", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="the answers, JSON compressed by gzip")
    parser.add_argument("--logs", type=Path, default=Path("build/tuning"))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    given = parser.parse_args()
    if given.do == "record":
        given.logs.mkdir(parents=True, exist_ok=True)
        found = record(given.logs)
        with gzip.GzipFile(given.file, "wb", mtime=0) as file:
            file.write(json.dumps(found).encode())
    else:
        recorded = read(given.file)
        print(table([check(recorded, *setting, given.rounds) for setting in SETTINGS]))


if __name__ == "__main__":
    main()
