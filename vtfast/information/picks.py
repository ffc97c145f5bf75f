"""Which visual tokens a method keeps: found by a patched model, or from information scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vtfast.errors import InputError, PlanError
from vtfast.information.maps import InformationMap
from vtfast.information.probe import Probe
from vtfast.inputs.data import Batch
from vtfast.methods import method as registered
from vtfast.patching import patch
from vtfast.plan import Plan
from vtfast.plan_file import is_plan_file
from vtfast.prune import Prune

ORACLE = "information"


@dataclass(frozen=True)
class Cell:
    """One variant of a sweep: a method with a seed, at a layer, keeping a share of the tokens.

    method: its name, or that of a plan file; `like` is then the stage whose method and options are
    meant.
    """

    method: str
    layer: int
    keep: float
    seed: int
    like: Prune | None = None

    @property
    def stage(self) -> Prune:
        """The stage that is tried."""
        if self.like is None:
            return Prune(self.layer, self.method, self.keep)
        return Prune(self.layer, self.like.method, self.keep, **self.like.chosen)


def choices(
    methods: Sequence[str], keep: float | Sequence[float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Check methods and budgets and return each once. Raises InputError and PlanError."""
    budgets = tuple(dict.fromkeys(keep)) if isinstance(keep, list | tuple) else (keep,)
    if isinstance(methods, str) or not methods or not budgets:
        raise InputError("methods and keep: pass at least one of each, methods as a list of names")
    names = tuple(dict.fromkeys(methods))
    for share in budgets:
        if not isinstance(share, float) or not 0 <= share <= 1:
            raise InputError(f"keep={share!r}: expected shares of the visual tokens, in [0.0, 1.0]")
    for name in names:
        if name != ORACLE and not is_plan_file(name):
            try:
                registered(name)
            except PlanError as error:
                raise PlanError(f'{error} (or "{ORACLE}", the oracle)') from None
            for share in budgets:
                Prune(0, name, share)  # raises if the method refuses the share, as "drop" does
    return names, budgets


def first_stages(methods: Sequence[str], keep: Sequence[float], model: Any) -> dict[str, Prune]:
    """The first stage of each of the methods that is a plan file. Raises PlanError."""
    config, found = model.config, {}
    for name in filter(is_plan_file, methods):
        plan = Plan.load(name)
        plan.check(config.get_text_config().num_hidden_layers, config.model_type)
        found[name] = plan.stages[0]
        for share in keep:
            Prune(0, plan.stages[0].method, share)  # raises if the method refuses the share
    return found


def picks(
    model: Any, batch: Batch, probe: Probe, found: InformationMap, cell: Cell, impl: str
) -> list[np.ndarray]:
    """Columns of `batch.inputs` of the visual tokens that a variant keeps, int64 per sample."""
    if cell.method == ORACLE:
        return _most_informative(found, cell, probe.samples)
    with (
        torch.no_grad(),
        patch(model, [cell.stage], seed=cell.seed, impl=impl, record=True) as handle,
    ):
        model(**batch.inputs, use_cache=False, logits_to_keep=1)
        assert handle.report is not None
        kept = handle.report.kept.get(cell.layer)
    if kept is None:  # nothing was dropped
        return probe.visual
    return [columns.cpu().numpy() for columns in kept]


def _most_informative(found: InformationMap, cell: Cell, samples: int) -> list[np.ndarray]:
    """Columns of the highest scores of each picture, per sample; ties go to the first."""
    kept: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] for _ in range(samples)]
    row = found.layers.index(cell.layer)
    for picture in found.pictures:
        columns, scores = picture.per_token()
        count = Prune(cell.layer, "random", cell.keep).count(len(columns), len(columns))
        best = np.argsort(-scores[row], kind="stable")[:count]
        kept[picture.sample].append(np.sort(columns[best]))
    return [np.concatenate(parts) for parts in kept]


def token_scores(found: InformationMap, sample: int, row: int) -> dict[int, float]:
    """Column → score of a sample's visual tokens at a layer."""
    scores: dict[int, float] = {}
    for picture in found.pictures:
        if picture.sample == sample:
            columns, shares = picture.per_token()
            scores.update(zip(columns.tolist(), shares[row].tolist(), strict=True))
    return scores
