"""Runs that model tests share: a prefill, a continuation, what was dropped, a probing method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
import torch
import transformers
from packaging.version import Version
from tiny_models import FAMILIES, visual_columns
from tiny_parts import Family
from torch import Tensor

import vtfast
from vtfast import Prune

OLD = Version(transformers.__version__) < Version("5.23")  # the tests say what it changes

# Every promise about a patched model is made for all families in both layouts.
SETUPS = [
    pytest.param(family, path, id=f"{name}-{path}")
    for name, family in FAMILIES.items()
    for path in family.layouts
]
both_layouts = pytest.mark.parametrize(("family", "path"), SETUPS)

FOUR_STAGES = [
    Prune(0, "diversity", 0.7),
    Prune(2, "random", 0.5),
    Prune(3, "topk", 0.3),  # scored by a layer that is pruned itself
    Prune(5, "random", 0.1),
]

# float32 rounding of six layers: up to 4e-4 was seen, on logits of size 8; a token too many or too
# few makes 0.1 and more.
BY_TEXT_AND_TOWER = [
    Prune(0, "scope", 0.5),
    Prune(2, "cdpruner", 0.4),
    Prune(3, "vispruner", 0.25),
    Prune(4, "visionzip", 0.1),
]
ATOL = 8e-4


def fed(family: Family, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of a plain forward, with the positions that `generate` would pass.

    A bare LLaVA counts padding as positions; Qwen finds the positions of its pictures by itself.
    """
    if not family.any_size:
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return {**inputs, "position_ids": positions}
    return dict(inputs)


@torch.no_grad()
def logits_of(family: Family, model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of every prompt token, [batch, length, vocabulary]."""
    return model(**fed(family, inputs)).logits


def continuation(
    model: torch.nn.Module, inputs: Mapping[str, Tensor], steps: int = 20, **options: object
) -> Tensor:
    """The tokens greedy `generate` appends, [batch, steps]."""
    out = model.generate(**inputs, max_new_tokens=steps, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def gone(inputs: Mapping[str, Tensor], kept: Mapping[int, Sequence[Tensor]]) -> dict:
    """From the visual columns that survive each stage to the columns lost from each stage on."""
    return {
        layer: [
            columns[~torch.isin(columns, survivors)]
            for columns, survivors in zip(visual_columns(inputs), rows, strict=True)
        ]
        for layer, rows in kept.items()
    }


# -- a registered method whose behaviour a test chooses --------------------------------------------

_probe: Callable | None = None


@vtfast.register_method("test-probe")
def _select(context: object) -> Tensor:
    assert _probe is not None
    return _probe(context)


@contextmanager
def probing(select: Callable) -> Iterator[None]:
    """Within the block, method "test-probe" is `select`."""
    global _probe
    _probe, before = select, _probe
    try:
        yield
    finally:
        _probe = before


def first_rows(context) -> Tensor:
    """A custom selection: the first tokens of every image."""
    offsets = context.segments.offsets
    rows = [
        torch.arange(start, start + count)
        for start, count in zip(offsets, context.keep, strict=False)
    ]
    return torch.cat(rows)
