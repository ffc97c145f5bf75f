"""The result of tuning: the plan, the finalists it was chosen from, and what the search tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtfast.information.results import Result, text_table
from vtfast.information.shares import wilson
from vtfast.inputs.data import Skipped
from vtfast.plan import Measured, Plan
from vtfast.plan_file import stage_of
from vtfast.tuning.search import bounds_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SHAPES = "os^vPX"  # of finalists; a diamond is the chosen one


@dataclass(frozen=True)
class Tried:
    """A plan, what it costs, and its answers to some questions.

    Attributes:
        stages: of the plan, as in a plan file.
        flops, cache: shares of the unpruned model's arithmetic in prefill, and of the tokens that
            its KV cache holds then. time: share of the time of `generate`, the median of some
            rounds; None where it was not measured.
        tokens: visual tokens of a question, averaged over layers and questions.
        lost, right, gained, wrong: answers that the unpruned model has right and the plan has not,
            of its `right` ones; and those that only the plan has right, of the others.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...]
    flops: float
    cache: float
    time: float | None
    tokens: float
    lost: int
    right: int
    gained: int
    wrong: int

    @property
    def samples(self) -> int:
        """Questions that it was asked."""
        return self.right + self.wrong

    @property
    def loss(self) -> float:
        """Accuracy that is lost against the unpruned model, a share of the questions."""
        return (self.lost - self.gained) / self.samples

    @property
    def accuracy(self) -> float:
        """Share of the questions answered right."""
        return (self.right - self.lost + self.gained) / self.samples

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Lower and upper bound of the true loss, each at one-sided `confidence`."""
        return bounds_of((self.lost, self.right, self.gained, self.wrong), confidence)


@dataclass(frozen=True)
class Tuned(Result):
    """The cheapest plan whose loss stays within the tolerance, and how it was found.

    Attributes:
        chosen: number of the plan among `finalists`; None if none is within the tolerance.
        finalists: with their answers to the questions held out, in the order they were tested, up
            to the first that failed.
        searched: the other plans that were tried, cheapest first, with their answers in the search.
        max_loss, confidence, objective, seed: as they were given.
        horizon: the layer that guided the search; None if there is none.
        samples: questions of the search. held_out: of the final word.
        plans: how many there were to choose from.
        answers: how many answers of the model all this took, of both parts, but those in a log.
        skipped: questions that could not be asked, and why.
    """

    chosen: int | None
    finalists: tuple[Tried, ...]
    searched: tuple[Tried, ...]
    task: str
    model_type: str
    num_layers: int
    max_loss: float
    confidence: float
    objective: str
    seed: int
    horizon: int | None
    samples: int
    held_out: int
    plans: int
    answers: int
    skipped: tuple[Skipped, ...] = ()

    @property
    def plan(self) -> Plan | None:
        """The plan to use, with its seed and what it was measured on; None without one."""
        return None if self.chosen is None else self.plan_of(self.finalists[self.chosen])

    @property
    def nearest(self) -> Tried | None:
        """The plan that was tried longest and loses least; what to look at where `plan` is None."""
        known = self.finalists or self.searched
        return min(known, key=lambda t: (-t.samples, t.bounds(self.confidence)[1]), default=None)

    @property
    def rules_out(self) -> float:
        """The smallest loss that the questions held out could rule out, were no answer lost."""
        return bounds_of((0, self.held_out, 0, 0), self.confidence)[1]

    def cost(self, tried: Tried) -> float:
        """What the objective counts of a plan, a share of the unpruned model's."""
        value = getattr(tried, self.objective)
        return float(tried.flops if value is None else value)

    def plan_of(self, tried: Tried) -> Plan:
        """The plan of an entry, with what it was measured on."""
        low, high = tried.bounds(self.confidence)
        about = self.model_type, self.num_layers, self.task, tried.samples
        measured = Measured(*about, tried.loss, low, high, self.confidence)
        return Plan(tuple(map(stage_of, tried.stages)), tried.name, self.seed, measured)

    def record(self) -> dict[str, Any]:
        """Everything, as a dict that JSON can hold; each plan with its loss and bounds too."""
        found = super().record()
        for name in ("finalists", "searched"):
            for tried, written in zip(getattr(self, name), found[name], strict=True):
                low, high = tried.bounds(self.confidence)
                written |= {"loss": tried.loss, "low": low, "high": high}
        return found

    HEAD = ("", "accuracy, %", "lost", "new", "loss, %", "tokens", "FLOPs", "time", "KV")

    def cells(self, tried: Tried) -> tuple[str, ...]:
        """A row as it is shown; `HEAD` names the columns."""
        low, high = (100 * end for end in wilson(tried.accuracy, tried.samples))
        least, most = (100 * end for end in tried.bounds(self.confidence))
        return (
            tried.name,
            f"{100 * tried.accuracy:.1f} ({low:.0f} to {high:.0f})",
            str(tried.lost),
            str(tried.gained),
            f"{100 * tried.loss:.1f} ({least:.1f} to {most:.1f})",
            f"{tried.tokens:.1f}",
            f"{tried.flops:.2f}",
            "" if tried.time is None else f"{tried.time:.2f}",
            f"{tried.cache:.2f}",
        )

    def rows(self) -> Sequence[tuple[str, ...]]:
        """The cells of the finalists that were tested, cheapest first, the chosen one marked."""
        best = None if self.chosen is None else self.finalists[self.chosen]
        ordered = sorted(self.finalists, key=self.cost)
        return [
            (("→ " if tried is best else "") + cells[0], *cells[1:])
            for tried, cells in ((t, self.cells(t)) for t in ordered)
        ]

    @property
    def verdict(self) -> str:
        """The answer in one or two sentences."""
        limit, sure = f"{100 * self.max_loss:g} %", f"{100 * self.confidence:g} %"
        asked = f"{self.held_out} questions that the search had not seen"
        if self.chosen is not None:
            best = self.finalists[self.chosen]
            most = 100 * best.bounds(self.confidence)[1]
            return (
                f"{best.name}: {self._share(best)}. It loses at most "
                f"{most:.2f} % of the answers with {sure} confidence, on {asked}."
            )
        said = f"No plan is shown to lose at most {limit} of the answers with {sure} confidence."
        near = self.nearest
        if near is None:
            return said
        least, most = (100 * end for end in near.bounds(self.confidence))
        return (
            f"{said} The nearest, {near.name} ({self._share(near)}), lost "
            f"{near.lost} and gained {near.gained} of {near.samples}: {least:.1f} to {most:.1f} %."
        )

    def _share(self, tried: Tried) -> str:
        words = {"flops": "arithmetic", "cache": "KV cache", "time": "time"}
        return f"{100 * self.cost(tried):.0f} % of the {words[self.objective]}"

    def __str__(self) -> str:
        table = [text_table([self.HEAD, *self.rows()])] if self.finalists else []
        return "\n".join([self.verdict, *table])

    def figure(self) -> "Figure":
        """Loss against arithmetic: a point for each plan that was tried, with the bounds of those
        that were asked the questions held out. Losses beyond two points are on a logarithmic scale.
        """
        from vtfast.information import plotting as plot

        figure, (axes,) = plot.panels(1, 1, 8.2, 4.1)
        sizes = sorted({t.samples for t in self.searched})
        for tried in self.searched:
            shade = 0.25 + 0.55 * sizes.index(tried.samples) / max(1, len(sizes) - 1)
            label = "tried in the search" if tried is self.searched[-1] else "_"
            point = tried.flops, 100 * tried.loss
            axes.plot(*point, "o", ms=3, color=plot.PALE, alpha=shade, label=label)
        for number, tried in sorted(enumerate(self.finalists), key=lambda one: one[1].flops):
            low, high = tried.bounds(self.confidence)
            ends = [[100 * (tried.loss - low)], [100 * (high - tried.loss)]]
            chosen = number == self.chosen
            colour = plot.COLOURS[2] if chosen else plot.COLOURS[0]
            shape = "D" if chosen else _SHAPES[number % len(_SHAPES)]
            label = ("chosen: " if chosen else "tested: ") + tried.name
            point = tried.flops, 100 * tried.loss
            axes.errorbar(*point, yerr=ends, fmt=shape, ms=6, color=colour, capsize=3, label=label)
        axes.axhline(100 * self.max_loss, color=plot.MARK, lw=0.9, ls="--", label="tolerance")
        axes.set_xlabel("arithmetic of a prefill, share of the unpruned model's")
        axes.set_ylabel("accuracy lost, points (logarithmic above 2)")
        axes.set_xlim(0, 1)
        axes.set_yscale("symlog", linthresh=2)
        axes.yaxis.set_major_formatter("{x:g}")
        plot.add_legend(figure, loc="outside right upper")
        about = f"{self.task}: {self.samples} questions searched, {self.held_out} held out"
        plot.set_title(axes, about)
        return figure
