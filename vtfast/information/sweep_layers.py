"""Measure accuracy by pruning method and by the layer that is pruned, on a data set.

A method selects tokens in a patched model that sees the prompt alone. What the selection is worth
is then read from a second run with the true answer after the prompt (`vtfast.information.probe`),
so a method that looks at the last token never sees the answer. The method `"information"` keeps the
tokens of the highest score: an oracle to compare with (arXiv 2512.07580), not a method to prune
with, as it needs the answer. With scores, the table also says how much of the information each
method retains.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtfast.information.checks import check_layers, check_options, check_share, measured_model
from vtfast.information.maps import InformationMap
from vtfast.information.packing import Kept
from vtfast.information.picks import ORACLE, Cell, choices, first_stages, picks, token_scores
from vtfast.information.pictures import Window, check_window
from vtfast.information.probe import Probe
from vtfast.information.records import Records, fingerprint
from vtfast.information.score_units import score_probe
from vtfast.information.sweeps import Sweep, tabulate
from vtfast.inputs.data import Batch, Dataset
from vtfast.methods.registry import method
from vtfast.prune import Prune

SEEDED = ("random",)


def sweep(
    model: Any,
    dataset: Dataset,
    methods: Sequence[str] = ("random", "diversity", "topk", ORACLE),
    layers: Sequence[int] | None = None,
    keep: float | Sequence[float] = 0.2,
    *,
    seeds: int = 3,
    retained: bool = True,
    window: int | Window | None = None,
    per: str = "mean_token",
    confidence: float = 0.95,
    batch: int = 8,
    chunk: int | None = None,
    impl: str = "auto",
    log: Path | str | None = None,
    progress: bool | Callable[[], object] = True,
) -> Sweep:
    """Measure the accuracy of a model with one pruning stage, by method, layer and budget.

    An answer is right if greedy decoding gives it. Deterministic, also when continued from a `log`.

    Args:
        model, layers, window, per, chunk, impl: as in `score`.
        dataset, batch, log, progress: as in `horizon`.
        methods: names of registered methods, and "information"; or a plan file ("plan.json"), for
            the method of its first stage with its options.
        keep: shares of an image's visual tokens in [0, 1].
        seeds: how many seeds "random" is run with, int ≥ 1; they are 0, 1, ….
        retained: score all units, to measure the information in the tokens that methods keep. This
            takes most of the time; the method "information" always needs it.
        confidence: of the intervals.

    Raises InputError and PlanError for what cannot be swept, and what `score` raises.
    """
    check_options(per=per, chunk=chunk, impl=impl, batch=batch, seeds=seeds)
    check_share("confidence", confidence, 0.0)
    model = measured_model(model)
    wanted, size = check_layers(layers, model), check_window(window)
    names, budgets = choices(methods, keep)
    likes = first_stages(names, budgets, model)
    called = {name: likes[name].method if name in likes else name for name in names}
    retained = retained or ORACLE in names
    cells = [
        Cell(method, layer, share, seed, likes.get(method))
        for method in names
        for layer in wanted
        for share in budgets
        for seed in range(seeds if called[method] in SEEDED else 1)
    ]
    settings = {
        "measures": "sweep",
        "model": fingerprint(model),
        "methods": [_written(name, likes.get(name)) for name in names],
        "layers": wanted,
        "keep": budgets,
        "seeds": seeds,
        "window": size,
        "per": per,
        "retained": retained,
        "batch": batch,
    }

    def measure(block: list[int]) -> list[dict[str, Any]]:
        encoded = dataset.batch(block, model.device)
        probe = Probe(model, encoded.inputs, encoded.answers, wanted, chunk=chunk, impl=impl)
        found = score_probe(probe, wanted, size, per, lengths=encoded.lengths, maps=retained)
        return _measure(model, encoded, probe, found, cells, per, impl)

    records, n = Records(log, settings, dataset), len(dataset)
    blocks = (list(range(start, min(start + batch, n))) for start in range(0, n, batch))
    records.fill(blocks, measure, progress)
    done, skipped = records.finished()
    about = {
        "task": dataset.task,
        "model_type": model.config.model_type,
        "num_layers": len(check_layers(None, model)),
        "per": per,
        "window": size,
        "skipped": skipped,
    }
    return tabulate(done, cells, wanted, confidence, about)


def _written(name: str, like: Prune | None) -> str:
    """A method with its options, as a log tells it: another text once a user's was edited."""
    if name == ORACLE:
        return name
    code = method(name if like is None else like.method).code
    told = name if like is None else f"{like.method} {like.chosen}"
    return f"{told} code {code}" if code else told


def _measure(
    model: Any,
    batch: Batch,
    probe: Probe,
    found: InformationMap,
    cells: Sequence[Cell],
    per: str,
    impl: str,
) -> list[dict[str, Any]]:
    """The record of each sample of a batch, as `tabulate` takes it."""
    samples = range(probe.samples)
    counts = [1 if per == "first_token" else n for n in batch.lengths]
    notes: list[dict[str, Any]] = [
        {
            "right_full": bool(found.right_full[b]),
            "right_without": found.right_without[:, b].tolist(),
            "total": found.of(b).sum(1).tolist() if found.pictures else [],
            "right": [],
            "p": [],
            "retained": [],
        }
        for b in samples
    ]
    for layer in found.layers:
        here = [cell for cell in cells if cell.layer == layer]
        row = found.layers.index(layer)
        scores = [token_scores(found, b, row) for b in samples]
        chosen = [picks(model, batch, probe, found, cell, impl) for cell in here]
        kept = [
            Kept(b, np.flatnonzero(np.isin(probe.original[b], columns)), len(probe.answers[b]))
            for columns_by_sample in chosen
            for b, columns in zip(samples, columns_by_sample, strict=True)
        ]
        (readings,) = probe.follow([layer], kept)
        for number, columns_by_sample in enumerate(chosen):
            for b in samples:
                reading = readings[number * probe.samples + b]
                notes[b]["right"].append(all(reading.best))
                notes[b]["p"].append(sum(reading.p[: counts[b]]) / counts[b])
                if found.pictures:
                    held = sum(scores[b].get(int(c), 0.0) for c in columns_by_sample[b])
                    notes[b]["retained"].append(held)
    return notes
