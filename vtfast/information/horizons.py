"""From which layer on visual tokens no longer matter to a model and a task: the horizon.

Two things are measured at the input of every layer, on samples with known answers: information, the
scores of all units, and loss, how much probability and accuracy the answer loses when all visual
tokens are dropped.

The rule is ours; arXiv 2512.07580 reads its horizon off plots. The horizon is the first layer from
which on the mean absolute score, the lost probability and the lost accuracy all stay within
`tolerance` of the full model's probability and accuracy, each by an upper bound at `confidence`
(one-sided, bootstrap over samples). Where the last layer is not within, there is no horizon.

The absolute score is taken because scores of both signs cancel: a token that misleads is not
uninformative. The loss is taken because single tokens may each carry almost nothing of an answer
that takes many of them.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.information.bootstrap import Estimate, estimate, resample, upper
from vtfast.information.checks import check_layers, check_options, check_share
from vtfast.information.maps import score_probe
from vtfast.information.pictures import Window, check_window
from vtfast.information.probe import Probe
from vtfast.information.records import Records, fingerprint
from vtfast.information.rule import first_from_which_on, interval
from vtfast.inputs.data import Dataset

CURVES = ("information", "absolute", "p_loss", "accuracy_loss")
_RULED = ("absolute", "p_loss", "accuracy_loss")


@dataclass(frozen=True)
class Horizon:
    """A measured horizon; `vtfast.patch(model, …, horizon=this)` and `Plan.from_horizon` take it.

    Attributes:
        layer: 0-based, visual tokens do not matter from its input on; None where there is none.
        interval: the layer in `confidence` of resampled data sets, without the caution of upper
            bounds; None stands for "none".
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
        """What the numbers do not say by themselves."""
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
                f"{self.samples} samples may all miss a loss that hits up to {100 * seen:.1f} % of "
                f"them; {needed} see {100 * self.tolerance:g} % at this confidence."
            )
        if not self.maps:
            notes.append("No unit was scored; the rule looks at the losses alone.")
        return notes

    def record(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        return asdict(self)

    def save(self, path: Path | str) -> None:
        """Write `record` as JSON."""
        Path(path).write_text(json.dumps(self.record(), indent=1) + "\n")

    def draw(self, path: Path | str) -> None:
        """Write the curves as PNG, and `record` as JSON beside it. Needs matplotlib."""
        from vtfast.information import figures

        figures.save(figures.curves(self), path, self.record())

    @staticmethod
    def load(path: Path | str) -> "Horizon":
        """What `save` wrote."""
        return Horizon.of_record(json.loads(Path(path).read_text()))

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> "Horizon":
        """From what `record` returned, also after a way through JSON."""
        tuples = ("interval", "layers", "spread")
        read: dict[str, Any] = {name: tuple(record[name]) for name in tuples}
        read["window"] = record["window"] and tuple(record["window"])
        for name in ("p_full", "accuracy_full"):
            read[name] = Estimate.of_record(record[name])
        read["curves"] = {
            name: Estimate.of_record(curve) for name, curve in record["curves"].items()
        }
        return Horizon(**{**record, **read})


def horizon(
    model: Any,
    dataset: Dataset,
    *,
    layers: Sequence[int] | None = None,
    window: int | Window | None = None,
    per: str = "mean_token",
    maps: int = 64,
    tolerance: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    batch: int = 8,
    chunk: int | None = None,
    impl: str = "auto",
    log: Path | str | None = None,
    progress: bool | Callable[[], object] = True,
) -> Horizon:
    """Measure the information horizon of a model on a task.

    Deterministic: the same arguments give the same result, also in several runs with a `log`.

    Args:
        model, layers, window, chunk, impl: as in `score`.
        dataset: samples with their answers.
        per: "mean_token" (all tokens of the answer) or "first_token" (the paper's).
        maps: score the units of that many samples, the first ones; the losses, which cost a small
            part of that, are measured on all. 0: losses only.
        tolerance: in (0, 1), a share of the full model's probability and accuracy.
        confidence: in (0.5, 1).
        seed: of the bootstrap.
        batch: samples run together.
        log: a file for finished samples (JSON lines); a run that finds one goes on with it.
        progress: a bar after two seconds; or a function that is called after every sample.

    Raises InputError for what cannot be measured, and what `score` raises.

    Example:
        >>> h = information.horizon(model, dataset)
        >>> vtfast.patch(model, "divprune+random", keep=0.5, horizon=h)
    """
    check_options(per=per, chunk=chunk, impl=impl, batch=batch)
    check_share("tolerance", tolerance, 0.0)
    check_share("confidence", confidence, 0.5)
    for name, count in (("maps", maps), ("seed", seed)):
        if type(count) is not int or count < 0:
            raise InputError(f"{name}={count!r}: expected an int >= 0")
    wanted, size, maps = check_layers(layers, model), check_window(window), min(maps, len(dataset))
    settings = {
        "measures": "horizon",
        "model": fingerprint(model),
        "data": dataset.fingerprint(),
        "samples": len(dataset),
        "layers": wanted,
        "window": size,
        "per": per,
        "maps": maps,
        "batch": batch,
    }

    def measure(block: list[int]) -> list[dict[str, Any]]:
        told = dataset.batch(block, model.device)
        probe = Probe(model, told.inputs, told.answers, wanted, chunk=chunk, impl=impl)
        found = score_probe(probe, wanted, size, per, lengths=told.lengths, maps=block[0] < maps)
        return [_sample_record(found, b) for b in range(len(block))]

    records = Records(log, settings)
    records.fill(_blocks(maps, len(dataset), batch), measure, progress, dataset.task)
    return summarize(
        [records.done[i] for i in range(len(dataset))],
        layers=wanted,
        num_layers=len(check_layers(None, model)),
        model_type=model.config.model_type,
        task=dataset.task,
        maps=maps,
        per=per,
        window=size,
        tolerance=tolerance,
        confidence=confidence,
        seed=seed,
    )


def summarize(
    records: Sequence[Mapping[str, Any]], *, layers: tuple[int, ...], maps: int, **about: Any
) -> Horizon:
    """Curves and horizon from what was noted of each sample; pure arithmetic.

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


def _sample_record(found: Any, b: int) -> dict[str, Any]:
    record = {
        "p_full": float(found.p_full[b]),
        "right_full": bool(found.right_full[b]),
        "p_without": found.p_without[:, b].tolist(),
        "right_without": found.right_without[:, b].tolist(),
    }
    if found.pictures:
        scores = found.of(b)
        record["information"] = scores.mean(1).tolist()
        record["absolute"] = np.abs(scores).mean(1).tolist()
        record["spread"] = scores.std(1).tolist()
    return record


def _blocks(maps: int, total: int, batch: int) -> list[list[int]]:
    """Sample numbers run together: those with maps, then the others. The same in every run."""
    return [
        list(range(start, min(start + batch, stop)))
        for first, stop in ((0, maps), (maps, total))
        for start in range(first, stop, batch)
    ]
