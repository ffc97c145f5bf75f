"""Which visual tokens a method keeps of each sample: asked of a patched model, or of the scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vtfast.information.data import Batch
from vtfast.information.maps import InformationMap
from vtfast.information.probe import Probe
from vtfast.patching import patch
from vtfast.prune import Prune

ORACLE = "information"


@dataclass(frozen=True)
class Cell:
    """One way to prune: a method with a seed, at a layer, at a budget."""

    method: str
    layer: int
    keep: float
    seed: int


def picks(
    model: Any, told: Batch, probe: Probe, found: InformationMap, cell: Cell, impl: str
) -> list[np.ndarray]:
    """Columns of `told.inputs` that a cell keeps of each sample's visual tokens."""
    if cell.method == ORACLE:
        return _most_informative(found, cell, probe.samples)
    stage = Prune(cell.layer, cell.method, cell.keep)
    with torch.no_grad(), patch(model, [stage], seed=cell.seed, impl=impl, record=True) as handle:
        model(**told.inputs, use_cache=False, logits_to_keep=1)
        assert handle.report is not None
        kept = handle.report.kept.get(cell.layer)
    if kept is None:  # nothing was dropped
        return probe.visual
    return [columns.cpu().numpy() for columns in kept]


def _most_informative(found: InformationMap, cell: Cell, samples: int) -> list[np.ndarray]:
    """The highest scores of each picture; ties go to the first."""
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
