"""The information horizon of a model on a task: what was measured, and the rule it follows from.

Two things are measured at the input of every decoder layer, on samples with known answers: the
information scores of all visual units, and how much probability and accuracy the answer loses when
all visual tokens are dropped.

The rule is ours; arXiv 2512.07580 reads its horizon off plots. The horizon is the first layer from
which on the mean absolute score, the lost probability and the lost accuracy all stay within
`tolerance` of the full model's probability and accuracy. Three outcomes are told apart:

- A horizon is shown: each of the three is within by an upper bound at `confidence`.
- It is shown that there is none: at the last layer one of them is beyond by a lower bound.
- Neither is shown with so many samples. The layer is then the first from which on the means stay
  within; what is made from it says so.

All bounds are one-sided. Those of the accuracy are exact (`vtfast.information.shares`): of 160
answers none may be lost, and the true loss still be 1.9 %. The other two are bootstrapped over
samples.

The absolute score is taken because scores of both signs cancel: a token that misleads is not
uninformative. The loss is taken because single tokens may each carry almost nothing of an answer
that takes many of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vtfast.information.bootstrap import Estimate, estimate, resample
from vtfast.information.horizon_rule import (
    count_answers,
    decide,
    estimate_loss,
    estimate_share,
    judge_answers,
    judge_means,
)
from vtfast.information.pictures import Window
from vtfast.information.results import Result
from vtfast.information.shares import loss_bounds, samples_to_rule_out
from vtfast.inputs.data import Skipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names of the curves, and what a figure calls them.
_SCORES = {"information": "mean", "absolute": "mean absolute"}
_LOSSES = {"p_loss": "probability of the answer", "accuracy_loss": "accuracy"}
CURVES = (*_SCORES, *_LOSSES)
_FEW_MAPS = 30  # a bootstrap of fewer values is known to be too narrow
SCORES = ("information", "absolute", "spread")  # of a record whose units were scored


@dataclass(frozen=True)
class Horizon(Result):
    """The measured decoder layer from which on visual tokens no longer matter to a model on a task.

    `vtfast.patch(model, …, horizon=this)` and `Plan.from_horizon` take it.

    Attributes:
        layer: 0-based, visual tokens do not matter from its input on; None where there is none.
        shown: whether the samples show it, and at None that there is none; see `doubt`.
        needed, needed_maps: about how many samples, and samples with scores, would show it; None
            where those there are enough, and where no number in reach would.
        interval: range of the layer in a share `confidence` of resampled data sets, by their means
            and not by upper bounds; None stands for "none".
        num_layers, model_type, task: what it holds for.
        layers: measured ones.
        curves: by name an `Estimate` with an entry per measured layer. "information": mean score of
            the units; "absolute": mean absolute score; "p_loss", "accuracy_loss": lost when all
            visual tokens are dropped from the layer on. The first two are missing without maps.
            The ends of "accuracy_loss" are exact bounds, all others are bootstrapped.
        spread: standard deviation of the scores over the units of a sample, mean over samples, per
            layer (as the paper plots); empty without maps.
        p_full, accuracy_full: of the model with every token.
        samples, maps: how many were measured, and for how many of them units were scored.
        skipped: samples that could not be measured, and why.
    """

    layer: int | None
    interval: tuple[int | None, int | None]
    num_layers: int
    model_type: str
    task: str
    layers: tuple[int, ...]
    curves: Mapping[str, Estimate]
    spread: tuple[float, ...]
    p_full: Estimate
    accuracy_full: Estimate
    samples: int
    maps: int
    per: str
    window: Window | None
    tolerance: float
    confidence: float
    seed: int
    shown: bool = True
    needed: int | None = None
    needed_maps: int | None = None
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """As `Result.of_record`. What a file of vtfast 0.1 shows is judged by the present rule, as
        far as its curves tell; its layer stays."""
        found = super().of_record(record)
        return found if "shown" in record else replace(found, shown=_is_shown_by_curves(found))

    @property
    def verdict(self) -> str:
        """The horizon in words."""
        doubt = f", {self.doubt}" if self.doubt else ""
        if self.layer is None:
            return f"no horizon up to layer {self.layers[-1]} of {self.num_layers}{doubt}"
        return f"horizon at layer {self.layer} of {self.num_layers}{doubt}"

    @property
    def doubt(self) -> str:
        """What plans made from it say: that it is not shown, and how many samples would; or ""."""
        if self.shown:
            return ""
        wanted = [] if self.needed is None else [f"about {self.needed}"]
        wanted += [] if self.needed_maps is None else [f"scores of about {self.needed_maps}"]
        more = f"; {' with '.join(wanted)} would" if wanted else ""
        return f"not shown with {_counted(self.samples)}{more}"

    @property
    def notes(self) -> list[str]:
        """Cautions about the numbers, such as few samples or layers that were not measured."""
        notes = []
        if len(self.layers) < self.num_layers:
            measured = ", ".join(map(str, self.layers))
            notes.append(
                f"Measured at layers {measured} only; other layers may need visual tokens."
            )
        right = round(self.samples * self.accuracy_full.mean[0])
        enough = samples_to_rule_out(self.tolerance, self.confidence)
        if not right:
            notes.append("The model answers nothing right, so there is nothing to lose.")
        elif right < enough:
            _, most = loss_bounds(0, right, 0, 0, self.confidence)
            notes.append(
                f"{_counted(self.samples)} with {right} right answers cannot rule out that up to "
                f"{100 * most:.1f} % of these are lost; {enough} right answers, none of them lost, "
                f"rule out {100 * self.tolerance:g} % at this confidence."
            )
        if not self.maps:
            notes.append("No unit was scored; the rule looks at the losses alone.")
        elif self.maps < _FEW_MAPS:
            notes.append(
                f"Units were scored for {_counted(self.maps)}, too few for a reliable bound of the "
                "scores."
            )
        return notes

    def __str__(self) -> str:
        return "\n".join([f"{self.task}: {self.verdict}", *self.notes])

    def figure(self) -> "Figure":
        """Information, and what is lost without visual tokens, by layer; the horizon marked."""
        from vtfast.information import plotting as plot

        panels = {"Lost without visual tokens from the layer on, points": _LOSSES}
        if self.maps:
            panels = {"Information of a unit, points of probability": _SCORES, **panels}
        figure, axes = plot.panels(len(panels), 1, 6.2, 3.6)
        limit = 100 * self.tolerance * self.p_full.mean[0]
        for ax, (title, curves) in zip(axes, panels.items(), strict=True):
            for (name, label), colour in zip(curves.items(), plot.COLOURS, strict=False):
                curve = self.curves[name]
                plot.draw_curve(ax, self.layers, curve.mean, curve.low, curve.high, colour, label)
            if curves is _SCORES:
                spread = 100 * np.array(self.spread)
                ax.plot(
                    self.layers, spread, ":", color=plot.PALE, label="spread over units", lw=1.2
                )
            ax.axhline(0, color=plot.PALE, lw=0.6)
            ax.axhline(limit, color=plot.PALE, lw=0.8, ls="--", label="tolerance")
            if self.layer is not None:
                label = f"horizon, layer {self.layer}"
                ax.axvline(self.layer, color=plot.MARK, lw=1.4, label=label)
            plot.set_title(ax, title)
            plot.add_legend(ax)
        plot.set_heading(figure, f"{self.task}: {self.verdict}")
        return figure


def summarize(
    records: Sequence[Mapping[str, Any]], *, layers: tuple[int, ...], **about: Any
) -> Horizon:
    """Compute curves and horizon from the records of the samples; no model is run.

    `about` are the other fields of a `Horizon`.
    """
    confidence, tolerance, seed = (about[n] for n in ("confidence", "tolerance", "seed"))
    scored = [record for record in records if "information" in record]
    everyone = resample(len(records), seed)
    mapped = resample(len(scored), seed) if scored else everyone
    p_full, right_full = (
        np.array([r[name] for r in records], dtype=np.float64) for name in ("p_full", "right_full")
    )
    values = {
        "p_loss": p_full[:, None] - np.array([r["p_without"] for r in records]),
        "accuracy_loss": right_full[:, None] - np.array([r["right_without"] for r in records]),
    }
    weights = dict.fromkeys(values, everyone)
    if scored:
        for name in ("information", "absolute"):
            values[name] = np.array([r[name] for r in scored])
            weights[name] = mapped
    full = {"p_loss": p_full, "accuracy_loss": right_full, "absolute": p_full}
    ruled = [name for name in full if name in values]

    limits = {name: tolerance * full[name].mean() + 1e-9 for name in ruled}
    surer = 1 - (1 - confidence) / len(ruled)  # any curve may show that there is none
    answers = count_answers(
        right_full > 0, np.array([r["right_without"] for r in records], dtype=bool)
    )
    bounds = confidence, surer
    judged = {
        name: judge_means(values[name], weights[name], limits[name], *bounds)
        for name in ruled
        if name != "accuracy_loss"
    }
    losses = [judge_answers(answers, tolerance, *bounds), judged["p_loss"]]
    outcome = decide(losses, judged.get("absolute"), layers)

    resampled = np.ones((len(everyone), len(layers)), dtype=bool)  # means
    for name in ruled:
        most = tolerance * (everyone @ full[name]) + 1e-9
        resampled &= weights[name] @ values[name] <= most[:, None]
    curves = {
        name: estimate(values[name], weights[name], confidence) for name in CURVES if name in values
    }
    curves["accuracy_loss"] = estimate_loss(answers, confidence)
    return Horizon(
        interval=interval(resampled, layers, confidence),
        layers=layers,
        curves=curves,
        spread=tuple(np.mean([r["spread"] for r in scored], 0).tolist()) if scored else (),
        p_full=estimate(p_full, everyone, confidence),
        accuracy_full=estimate_share(int(right_full.sum()), len(records), confidence),
        samples=len(records),
        maps=len(scored),
        **vars(outcome),
        **about,
    )


def interval(
    resampled: np.ndarray, layers: tuple[int, ...], confidence: float
) -> tuple[int | None, int | None]:
    """Between which layers the horizon lies in a share `confidence` of the resampled data sets.

    `resampled`: bool [rounds, layers], whether a layer is within tolerance. None stands for "none".
    """
    backwards = np.cumprod(resampled[:, ::-1], axis=1).sum(1)  # layers within, from the last one
    outside = (1 - confidence) / 2
    places = len(layers) - backwards
    low, high = np.quantile(places, [outside, 1 - outside], method="nearest").astype(int).tolist()
    at = (*layers, None)
    return at[low], at[high]


def _counted(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


def _is_shown_by_curves(found: Horizon) -> bool:
    """Whether a horizon of vtfast 0.1 is shown: its files have what was lost on balance only."""
    n, layers = found.samples, found.layers
    right = round(n * found.accuracy_full.mean[0])
    balance = [round(n * loss) for loss in found.curves["accuracy_loss"].mean]
    counts = [(max(0, lost), right, max(0, -lost), n - right) for lost in balance]
    judged = judge_answers(counts, found.tolerance, found.confidence, found.confidence)
    if found.layer is not None:
        return bool(judged.within[layers.index(found.layer) :].all())
    limit = found.tolerance * found.p_full.mean[0]
    scores = (found.curves[name].low[-1] for name in ("absolute", "p_loss") if name in found.curves)
    return bool(judged.beyond[-1]) or any(low > limit for low in scores)
