"""Which questions of a data set a model answers right under each plan, asked only once."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vtfast.evaluation.asking import answers
from vtfast.evaluation.compare import Match, longest_answer, match_of
from vtfast.information.records import Records, fingerprint
from vtfast.inputs.data import Dataset, Skipped
from vtfast.inputs.distributed import Shards
from vtfast.methods.registry import written
from vtfast.plan import Plan
from vtfast.tuning.search import Counts

_FULL = "unpruned"


class Answers:
    """Asks a model under one plan after another, in batches shared out over processes.

    Args:
        how: further arguments of `vtfast.patch`.
        match: as in `vtfast.evaluate`.
        max_new_tokens: of an answer; None: one more than the longest true answer has.
        progress: is called after every answer.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        how: dict[str, Any],
        match: str | Match,
        max_new_tokens: int | None,
        batch: int,
        log: Path | str | None,
        shards: Shards,
        progress: Callable[[], object],
    ) -> None:
        matching, self._match = match_of(match)
        self._dataset, self._batch, self._shards = dataset, batch, shards
        self._progress, self._device = progress, model.device
        most = longest_answer(dataset) if max_new_tokens is None else max_new_tokens
        self._answers = partial(answers, model, dataset.processor, how, most)
        settings = {
            "measures": "tuning",
            "model": fingerprint(model),
            **how,
            "match": matching,
            "max_new_tokens": max_new_tokens,
        }
        process = shards.rank if shards.size > 1 else None
        self._records = Records(log, settings, dataset, process=process, adds=True)
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

    def sizes(self, questions: Sequence[int]) -> list[tuple[int, int, int]]:
        """Visual tokens, pictures and other tokens of each question that the unpruned model was
        asked."""
        examples, done = self._dataset.examples, self._records.done
        found = ((done[n][_FULL], len(examples[n].images)) for n in questions)
        return [(answer[2], pictures, answer[3]) for answer, pictures in found]

    def right(self, questions: Sequence[int]) -> int:
        """How many of these the unpruned model answers right."""
        return sum(self._records.done[n][_FULL][0] for n in questions)

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
    def times(
        self, plans: Sequence[Plan], questions: Sequence[int], rounds: int
    ) -> list[float | None]:
        """Time of `generate` for a batch under each plan, as a share of the unpruned model's: the
        median of some rounds, in turn; None where the batch cannot be run. Measured by the first
        process alone."""
        found: list[float | None] = [None] * len(plans)
        if self._shards.rank == 0 and plans:
            taken: list[list[float]] = []
            try:
                inputs = self._dataset.batch(questions[: self._batch], self._device).inputs
                for _ in range(1 + rounds):  # the first one warms up
                    runs = (self._answers(inputs, plan)[0] for plan in (None, *plans))
                    taken.append([run["seconds"] for run in runs])
            except (RuntimeError, ValueError):  # such as a batch that is too large
                taken = []
            for number in range(len(plans) if taken else 0):
                found[number] = median(row[1 + number] / row[0] for row in taken[1:])
        return self._shards.joined({0: found} if self._shards.rank == 0 else {})[0]

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
        found, runs = [], self._answers(inputs, plan)
        self._made += len(block)
        for n, run in zip(block, runs, strict=True):
            right = bool(self._match(run["said"], self._dataset.examples[n].answer))
            own = [right, run["seconds"] / len(block)]
            found.append({key: own if plan else [*own, run["visual"], run["text"]]})
            self._progress()
        return found


def _key(plan: Plan | None) -> str:
    return _FULL if plan is None else " ".join(map(written, plan.stages))
