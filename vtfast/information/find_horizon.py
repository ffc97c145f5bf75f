"""Measure the information horizon of a model on a task, sample by sample."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.information.checks import check_layers, check_options, check_share, measured_model
from vtfast.information.horizons import SCORES, Horizon, summarize
from vtfast.information.maps import InformationMap
from vtfast.information.pictures import Window, check_window
from vtfast.information.probe import Probe
from vtfast.information.records import Records, fingerprint
from vtfast.information.score_units import score_probe
from vtfast.inputs.data import Dataset


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

    Deterministic: the same arguments give the same result, also in several runs with a `log` (if
    the data set was changed in between, up to rounding, as batches are others). If the dataset
    skips bad samples, the result says which and why.

    Args:
        model, layers, window, chunk, impl: as in `score`.
        dataset: samples with their answers.
        per: "mean_token" (all tokens of the answer) or "first_token" (the paper's).
        maps: score the units of so many samples: those that a log has, then the first ones. The
            losses cost far less and are measured on all samples. 0: losses only.
        tolerance: in (0, 1), a share of the full model's probability and accuracy.
        confidence: in (0.5, 1).
        seed: of the bootstrap.
        batch: samples run together.
        log: a file for finished samples (JSON lines); a run that finds one goes on with all samples
            it has, also if the data set was mended, extended, cut or reordered since.
        progress: True for a bar after two seconds, or a function to call after every sample.

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
    model = measured_model(model)
    wanted, size = check_layers(layers, model), check_window(window)
    settings = {
        "measures": "horizon",
        "model": fingerprint(model),
        "layers": wanted,
        "window": size,
        "per": per,
        "batch": batch,
    }

    def measure(block: list[int]) -> list[dict[str, Any]]:
        encoded = dataset.batch(block, model.device)
        probe = Probe(model, encoded.inputs, encoded.answers, wanted, chunk=chunk, impl=impl)
        scored = block[0] in chosen
        found = score_probe(probe, wanted, size, per, lengths=encoded.lengths, maps=scored)
        return [_sample_record(found, b) for b in range(len(block))]

    records = Records(log, settings, dataset)
    mapped, others = _with_maps(records.done, len(dataset), maps)
    chosen = set(mapped)
    for n in mapped:
        if "information" not in records.done.get(n, ()):
            records.done.pop(n, None)
    records.fill([*_blocks(mapped, batch), *_blocks(others, batch)], measure, progress)
    for n in others:
        if n in records.done:  # a log may have scores of more samples
            records.done[n] = {k: v for k, v in records.done[n].items() if k not in SCORES}
    done, skipped = records.finished()
    return summarize(
        done,
        skipped=skipped,
        layers=wanted,
        num_layers=len(check_layers(None, model)),
        model_type=model.config.model_type,
        task=dataset.task,
        per=per,
        window=size,
        tolerance=tolerance,
        confidence=confidence,
        seed=seed,
    )


def _sample_record(found: InformationMap, b: int) -> dict[str, Any]:
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


def _with_maps(done: Mapping[int, Any], total: int, maps: int) -> tuple[list[int], list[int]]:
    """Samples whose units are scored, and the others, each ascending.

    First those whose units are scored already, then those that are not measured, in order.
    """

    def rank(n: int) -> tuple[bool, bool, int]:
        return "information" not in done.get(n, ()), n in done, n

    ranked = sorted(range(total), key=rank)
    return sorted(ranked[:maps]), sorted(ranked[maps:])


def _blocks(samples: list[int], batch: int) -> list[list[int]]:
    """Samples run together."""
    return [samples[start : start + batch] for start in range(0, len(samples), batch)]
