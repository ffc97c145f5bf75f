"""Is what `vtfast.tune` promises kept? Its search, repeated on answers that were recorded once.

    python -m vtfast.toy.tuning record bench/results/tuning_answers.json.gz
    python -m vtfast.toy.tuning check bench/results/tuning_answers.json.gz

`record` asks a bundled model every question under every plan of a small space: an hour or more on
one core. `check` draws questions from these a thousand times, tunes on them, and counts how often
the plan found loses more than the tolerance of the questions that were not drawn, what it costs
beside an exhaustive search of the same space, and how many answers both take; minutes.
"""

import argparse
import base64
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from vtfast import toy
from vtfast.evaluation.asking import sizes_of
from vtfast.information.progress import steps
from vtfast.plan import Plan
from vtfast.plan_file import stage_of, stage_record
from vtfast.toy.evaluate import dataset
from vtfast.toy.methods import answered
from vtfast.toy.model import family_of
from vtfast.tuning.search import Counts, Found, search
from vtfast.tuning.space import Costs, space

MODEL, SCENES, SEED = "qwen3", 834, 31  # scenes of each task
METHODS, KEEPS = ("diversity", "random", "topk"), (0.5, 0.25, 0.125, 0.0625)
MAX_LOSS, CONFIDENCE, DRAWN, ROUNDS = 0.01, 0.95, 2000, 1000
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
        sizes.update((visual, 1, text) for visual, text in sizes_of(model, asked))
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


def _packed(right: Sequence[bool]) -> str:
    return base64.b64encode(np.packbits(right).tobytes()).decode()


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
        full, own = self.full[questions], self.right[plan, questions]
        right = int(full.sum())
        lost, gained = int((full & ~own).sum()), int((own & ~full).sum())
        return lost, right, gained, len(questions) - right

    def loss(self, plan: int, questions: Sequence[int]) -> float:
        """The share of the answers to these questions that the plan loses."""
        lost, _, gained, _ = self.counts(plan, questions)
        return (lost - gained) / len(questions)


def once(answers: Recorded, drawn: Sequence[int], exhaustive: bool = False) -> tuple[Found, int]:
    """Tune on the drawn questions; also how many answers that takes."""
    most: dict[tuple[int, bool], int] = {}
    half = len(drawn) // 2

    def ask(plan: int, questions: Sequence[int]) -> Counts:
        part = plan, questions[0] == drawn[half]
        most[part] = max(most.get(part, 0), len(questions))
        return answers.counts(plan, questions)

    given = drawn[:half], drawn[half:], MAX_LOSS, CONFIDENCE
    found = search(answers.flops.tolist(), ask, *given, exhaustive=exhaustive)
    return found, len(drawn) + sum(most.values())


def check(answers: Recorded, rounds: int = ROUNDS, progress: bool = True) -> dict[str, Any]:
    """What so many searches found, and how well it held."""
    n, broken, none, costs, asked = len(answers.full), 0, 0, [], []
    whole = len(answers.plans) * DRAWN
    with steps(progress, "searches", rounds, "search") as tick:
        for number in range(rounds):
            order = np.random.default_rng(number).permutation(n)
            drawn, unseen = order[:DRAWN].tolist(), order[DRAWN:].tolist()
            found, took = once(answers, drawn)
            best, _ = once(answers, drawn, exhaustive=True)
            asked.append(took / (whole + DRAWN))
            if found.passed:
                plan = min(found.passed)
                broken += answers.loss(plan, unseen) > MAX_LOSS
                if best.passed:
                    costs.append(answers.flops[plan] / answers.flops[min(best.passed)])
            none += not found.passed
            tick()
    return {
        "searches": rounds,
        "questions": DRAWN,
        "plans": len(answers.plans),
        "promise_broken": broken / rounds,
        "none_found": none / rounds,
        "flops_against_exhaustive": mean(costs),
        "worst_flops_against_exhaustive": max(costs),
        "answers_against_exhaustive": mean(asked),
        "most_answers_against_exhaustive": max(asked),
    }


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
        with gzip.GzipFile(given.file, "wb", mtime=0) as file:
            file.write(json.dumps(record(given.logs)).encode())
        return
    with gzip.open(given.file) as file:
        found = check(Recorded(json.load(file)), given.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
