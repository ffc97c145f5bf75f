"""The information horizon of a model on a task: what was measured, and the rule it follows from.

Two things are measured at the input of every decoder layer, on samples with known answers: the
information scores of all visual units, and how much probability and accuracy the answer loses when
all visual tokens are dropped.

The rule is ours; arXiv 2512.07580 reads its horizon off plots. The horizon is the first layer from
which on the mean absolute score, the lost probability and the lost accuracy all stay within
`tolerance` of the full model's probability and accuracy, each by an upper bound at `confidence`
(one-sided, bootstrap over samples). Where the last layer is not within, there is no horizon.

The absolute score is taken because scores of both signs cancel: a token that misleads is not
uninformative. The loss is taken because single tokens may each carry almost nothing of an answer
that takes many of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vtfast.information.bootstrap import Estimate, estimate, resample, upper
from vtfast.information.pictures import Window
from vtfast.information.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names of the curves, and what a figure calls them.
_SCORES = {"information": "mean", "absolute": "mean absolute"}
_LOSSES = {"p_loss": "probability of the answer", "accuracy_loss": "accuracy"}
CURVES = (*_SCORES, *_LOSSES)
_RULED = ("absolute", "p_loss", "accuracy_loss")


@dataclass(frozen=True)
class Horizon(Result):
    """The measured decoder layer from which on visual tokens no longer matter to a model on a task.

    `vtfast.patch(model, …, horizon=this)` and `Plan.from_horizon` take it.

    Attributes:
        layer: 0-based, visual tokens do not matter from its input on; None where there is none.
        interval: range of the layer in a share `confidence` of resampled data sets, by their means
            and not by upper bounds; None stands for "none".
        num_layers, model_type, task: what it holds for.
        layers: measured ones.
        curves: by name an `Estimate` with an entry per measured layer. "information": mean score of
            the units; "absolute": mean absolute score; "p_loss", "accuracy_loss": lost when all
            visual tokens are dropped from the layer on. The first two are missing without maps.
        spread: standard deviation of the scores over the units of a sample, mean over samples, per
            layer (as the paper plots); empty without maps.
        p_full, accuracy_full: of the model with every token.
        samples, maps: how many were measured, and for how many of them units were scored.
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

    @property
    def verdict(self) -> str:
        """The horizon in words."""
        if self.layer is None:
            return f"no horizon up to layer {self.layers[-1]} of {self.num_layers}"
        return f"horizon at layer {self.layer} of {self.num_layers}"

    @property
    def notes(self) -> list[str]:
        """Cautions about the numbers, such as few samples or layers that were not measured."""
        needed = math.ceil(math.log(1 - self.confidence) / math.log1p(-self.tolerance))
        notes = []
        if len(self.layers) < self.num_layers:
            measured = ", ".join(map(str, self.layers))
            notes.append(
                f"Measured at layers {measured} only; other layers may need visual tokens."
            )
        if not self.accuracy_full.mean[0]:
            notes.append("The model answers nothing right, so there is nothing to lose.")
        if self.samples < needed:
            seen = 1 - (1 - self.confidence) ** (1 / self.samples)
            notes.append(
                f"{self.samples} samples cannot rule out that up to {100 * seen:.1f} % of the "
                f"answers are lost; {needed} can rule out {100 * self.tolerance:g} % at this "
                "confidence."
            )
        if not self.maps:
            notes.append("No unit was scored; the rule looks at the losses alone.")
        return notes

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
                ax.axvline(self.layer, color=plot.RED, lw=1.4, label=label)
            plot.set_title(ax, title)
            ax.legend(fontsize=8, frameon=False)
        plot.set_heading(figure, f"{self.task}: {self.verdict}, {self.samples} samples")
        return figure


def summarize(
    records: Sequence[Mapping[str, Any]], *, layers: tuple[int, ...], maps: int, **about: Any
) -> Horizon:
    """Compute curves and horizon from the records of the samples; no model is run.

    `about` are the other fields of a `Horizon`.
    """
    confidence, tolerance, seed = (about[n] for n in ("confidence", "tolerance", "seed"))
    everyone = resample(len(records), seed)
    mapped = resample(maps, seed) if maps else everyone
    p_full, right_full = (
        np.array([r[name] for r in records], dtype=np.float64) for name in ("p_full", "right_full")
    )
    values = {
        "p_loss": p_full[:, None] - np.array([r["p_without"] for r in records]),
        "accuracy_loss": right_full[:, None] - np.array([r["right_without"] for r in records]),
    }
    weights = dict.fromkeys(values, everyone)
    if maps:
        for name in ("information", "absolute"):
            values[name] = np.array([r[name] for r in records[:maps]])
            weights[name] = mapped
    full = {"p_loss": p_full, "accuracy_loss": right_full, "absolute": p_full}

    within = np.ones(len(layers), dtype=bool)  # upper bounds
    resampled = np.ones((len(everyone), len(layers)), dtype=bool)  # means
    for name in _RULED:
        if name in values:
            most = tolerance * full[name].mean() + 1e-9
            within &= upper(values[name], weights[name], confidence) <= most
            limits = tolerance * (everyone @ full[name]) + 1e-9
            resampled &= weights[name] @ values[name] <= limits[:, None]
    order = [name for name in CURVES if name in values]
    return Horizon(
        layer=first_from_which_on(within, layers),
        interval=interval(resampled, layers, confidence),
        layers=layers,
        curves={name: estimate(values[name], weights[name], confidence) for name in order},
        spread=tuple(np.mean([r["spread"] for r in records[:maps]], 0).tolist()) if maps else (),
        p_full=estimate(p_full, everyone, confidence),
        accuracy_full=estimate(right_full, everyone, confidence),
        samples=len(records),
        maps=maps,
        **about,
    )


def first_from_which_on(within: np.ndarray, layers: Sequence[int]) -> int | None:
    """The first of some layers from which on all are `within`, bool [layers]; None without one."""
    outside = np.flatnonzero(~within)
    first = outside[-1] + 1 if len(outside) else 0
    return layers[first] if first < len(layers) else None


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
