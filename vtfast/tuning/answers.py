"""Which questions of a data set a model answers right under each plan, asked only once."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vtfast.distributed import Shards
from vtfast.evaluation.asking import answers
from vtfast.information.records import Records, fingerprint
from vtfast.inputs.data import Dataset, Skipped
from vtfast.plan import Plan
from vtfast.tuning.search import Counts

_FULL = "unpruned"


class Answers:
    """Asks a model under one plan after another, in batches shared out over processes.

    Args:
        how: further arguments of `vtfast.patch`.
        match: whether what was said is the true answer.
        settings: what else an answer depends on, for the log.
        progress: is called after every answer.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        how: dict[str, Any],
        match: Callable[[str, str], bool],
        max_new_tokens: int,
        batch: int,
        settings: dict[str, Any],
        log: Path | str | None,
        shards: Shards,
        progress: Callable[[], object],
    ) -> None:
        self._dataset, self._match, self._batch = dataset, match, batch
        self._shards, self._progress, self._device = shards, progress, model.device
        self._answers = partial(answers, model, dataset.processor, how, max_new_tokens)
        origin = {"measures": "tuning", "model": fingerprint(model)}
        process = shards.rank if shards.size > 1 else None
        self._records = Records(log, {**origin, **settings}, dataset, process=process, adds=True)
        self._made = 0
        self.skipped: tuple[Skipped, ...] = ()  # questions that could not be asked

    def made(self) -> int:
        """How many answers were made, by all processes, but those in the log."""
        return sum(self._shards.joined({self._shards.rank: self._made}).values())

    def full(self, questions: Sequence[int]) -> list[int]:
        """Ask the unpruned model; returns the questions that could be asked."""
        self._ask(None, questions)
        skipped = self._shards.joined(self._records.skipped)
        self.skipped = (*self._dataset.skipped, *(skipped[n] for n in sorted(skipped)))
        return [n for n in questions if n not in skipped]

    def sizes(self, questions: Sequence[int]) -> list[tuple[int, int]]:
        """Visual and other tokens of each question, once the unpruned model was asked."""
        return [tuple(self._records.done[n][_FULL][2:]) for n in questions]

    def counts(self, plan: Plan, questions: Sequence[int]) -> Counts:
        """Answers under a plan against those of the unpruned model."""
        self._ask(plan, questions)
        key, lost, right, gained = _key(plan), 0, 0, 0
        for n in questions:
            record = self._records.done[n]  # a question that only this plan cannot be asked is lost
            whole, own = bool(record[_FULL][0]), bool(record.get(key, (False,))[0])
            right, lost, gained = right + whole, lost + (whole > own), gained + (own > whole)
        return lost, right, gained, len(questions) - right

    @torch.no_grad()
    def time(
        self, plans: Sequence[Plan | None], questions: Sequence[int], rounds: int
    ) -> list[list[float]]:
        """Seconds of `generate` for a batch, of each plan in every round; in turn."""
        inputs = self._dataset.batch(questions[: self._batch], self._device).inputs
        taken = [[self._answers(inputs, p)[0]["seconds"] for p in plans] for _ in range(rounds + 1)]
        return taken[1:]

    def _ask(self, plan: Plan | None, questions: Sequence[int]) -> None:
        """Have every question answered under a plan, in this process or in another."""
        key, done, shards = _key(plan), self._records.done, self._shards
        blocks = [
            list(questions[start : start + self._batch])
            for start in range(0, len(questions), self._batch)
        ]
        # Shared out before those in the log are left out: what a process finds there may differ.
        own = blocks[shards.rank :: shards.size]
        ask = partial(self._measure, plan, key)
        self._records.fill(own, ask, lambda: None, "answer", lambda record: key in record)
        if shards.size > 1:
            found = {n: done[n][key] for block in own for n in block if key in done.get(n, ())}
            for n, answer in shards.joined(found).items():
                done[n] = {**done.get(n, {}), key: answer}

    @torch.no_grad()
    def _measure(self, plan: Plan | None, key: str, block: list[int]) -> list[dict[str, Any]]:
        inputs = self._dataset.batch(block, self._device).inputs
        found = []
        self._made += len(block)
        for n, run in zip(block, self._answers(inputs, plan), strict=True):
            right = bool(self._match(run["said"], self._dataset.examples[n].answer))
            own = [right, run["seconds"] / len(block)]
            found.append({key: own if plan else [*own, run["visual"], run["text"]]})
            self._progress()
        return found


def _key(plan: Plan | None) -> str:
    return _FULL if plan is None else " ".join(map(repr, plan.stages))
