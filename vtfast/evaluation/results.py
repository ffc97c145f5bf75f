"""The table that a comparison of plans ends in: arithmetic on what was noted of each question."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

Z = 1.96  # of two-sided 95 % intervals


@dataclass(frozen=True)
class Row:
    """What one plan came to; the first row of a comparison is the unpruned model.

    Attributes:
        plan: stage by stage, in words; None for the unpruned model.
        correct: answers that are right, of `samples`.
        lost, gained: questions that the unpruned model answers and this plan does not, and the
            other way round.
        average_tokens: visual tokens of a question as they ran, averaged over layers and questions.
        flops_ratio: multiply-adds of the decoder layers in prefill (see `Plan.flops_ratio`), as a
            share of the unpruned model's.
        time_ratio: time of `generate`, pictures' encoding included, as a share of the unpruned
            model's on the same batch; median over batches. `seconds`: per question.
        kv_bytes: of keys and values allocated when an answer is finished, per question.
    """

    name: str
    plan: str | None
    samples: int
    correct: int
    lost: int
    gained: int
    average_tokens: float
    flops_ratio: float
    time_ratio: float
    seconds: float
    kv_bytes: float

    @property
    def accuracy(self) -> float:
        """Share of the questions answered right."""
        return self.correct / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 % (Wilson)."""
        return wilson(self.accuracy, self.samples)


@dataclass(frozen=True)
class Comparison:
    """A row for the unpruned model and one for every plan, on the same questions."""

    rows: tuple[Row, ...]
    task: str
    model_type: str
    num_layers: int
    samples: int
    settings: Mapping[str, Any]

    def of(self, name: str) -> Row:
        """The row of a plan by its name; "unpruned" is the model as it is."""
        return next(row for row in self.rows if row.name == name)

    @property
    def pareto(self) -> tuple[str, ...]:
        """Names of the rows that no other beats: none is as good with fewer tokens, or better with
        no more."""

        def beaten(row: Row) -> bool:
            return any(
                (o.correct >= row.correct and o.average_tokens < row.average_tokens)
                or (o.correct > row.correct and o.average_tokens <= row.average_tokens)
                for o in self.rows
            )

        return tuple(row.name for row in self.rows if not beaten(row))

    def record(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        rows = []
        for row in self.rows:
            low, high = row.interval
            told = {"accuracy": row.accuracy, "low": low, "high": high}
            rows.append({**asdict(row), **told, "pareto": row.name in self.pareto})
        return {**asdict(self), "settings": dict(self.settings), "rows": rows}

    def save(self, path: Path | str) -> None:
        """Write `record` as JSON."""
        Path(path).write_text(json.dumps(self.record(), indent=1) + "\n")

    def draw(self, path: Path | str) -> None:
        """Draw accuracy against average tokens as a PNG, with the JSON beside it."""
        from vtfast.evaluation.figure import pareto
        from vtfast.information.figures import save

        save(pareto(self), path, self.record())

    def __str__(self) -> str:
        cells = [self.HEAD, *(self.cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in ((line[0].ljust(widths[0]), *line[1:]) for line in cells)
        )
        return "\n".join(lines)

    HEAD = ("", "accuracy, %", "lost", "new", "tokens", "FLOPs", "time", "KV MB")

    @staticmethod
    def cells(row: Row) -> tuple[str, ...]:
        """A row as it is shown; `HEAD` names the columns."""
        low, high = row.interval
        return (
            row.name,
            f"{100 * row.accuracy:.1f} ({100 * low:.0f} to {100 * high:.0f})",
            str(row.lost),
            str(row.gained),
            f"{row.average_tokens:.1f}",
            f"{row.flops_ratio:.2f}",
            f"{row.time_ratio:.2f}",
            f"{row.kv_bytes / 1e6:.2f}",
        )


def wilson(share: float, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a share of n trials."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding can lead out


def tabulate(
    records: Sequence[Mapping[str, Any]], plans: Mapping[str, str | None]
) -> tuple[Row, ...]:
    """Rows from what was noted of each question; the first plan is the unpruned model.

    A record has the `block` its question ran in, and in `runs`, by name, an answer's `right`,
    `tokens`, `flops`, `seconds` (of the block) and `kv_bytes`.
    """
    names = list(plans)
    full = names[0]
    blocks = {record["block"]: record["runs"] for record in records}
    rows = []
    for name, plan in plans.items():
        runs = [(record["runs"][full], record["runs"][name]) for record in records]
        rows.append(
            Row(
                name=name,
                plan=plan,
                samples=len(records),
                correct=sum(own["right"] for _, own in runs),
                lost=sum(whole["right"] and not own["right"] for whole, own in runs),
                gained=sum(own["right"] and not whole["right"] for whole, own in runs),
                average_tokens=mean(own["tokens"] for _, own in runs),
                flops_ratio=sum(o["flops"] for _, o in runs) / sum(w["flops"] for w, _ in runs),
                time_ratio=median(
                    run[name]["seconds"] / run[full]["seconds"] for run in blocks.values()
                ),
                seconds=sum(run[name]["seconds"] for run in blocks.values()) / len(records),
                kv_bytes=mean(own["kv_bytes"] for _, own in runs),
            )
        )
    return tuple(rows)
