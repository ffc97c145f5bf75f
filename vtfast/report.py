"""What the last finished prefill of a patched model did."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from vtfast.plan import Plan

Result = TypeVar("Result")


@dataclass(frozen=True)
class Report:
    """One prefill, in numbers.

    Attributes:
        plan: what ran; `print(report.plan)` tells its stages and where its horizon came from.
        tokens: visual tokens each layer saw, `tokens[sample][layer]`.
        average: visual tokens per image, averaged over all decoder layers.
        path: "packed" or "padded"; `path_reason` says why.
        select_ms: with `record=True`, milliseconds of each stage's selection, by layer (waits for
            the device, so it slows a GPU down).
    """

    plan: Plan
    tokens: tuple[tuple[int, ...], ...]
    average: float
    path: str
    path_reason: str
    select_ms: dict[int, float]
    _kept: dict[int, tuple[Tensor, list[int]]] = field(repr=False)
    _chunk: int = field(repr=False)

    @cached_property
    def kept(self) -> dict[int, tuple[Tensor, ...]]:
        """For each stage that dropped something, by layer, one int64 tensor per sample: the
        positions of its kept visual tokens in the input (left padding counts). Only with
        `record=True`."""
        return {
            layer: tuple(part % self._chunk for part in flat.split(counts))
            for layer, (flat, counts) in self._kept.items()
        }

    def __str__(self) -> str:
        return (
            f"{self.plan}\n  {self.average:.2f} visual tokens per image on average, "
            f"{self.path} layout ({self.path_reason})"
        )

    @staticmethod
    def of(
        *,
        plan: Plan,
        counts: list[tuple[int, list[int]]],
        num_layers: int,
        images: int,
        path: str,
        path_reason: str,
        select_ms: dict[int, float],
        kept: dict[int, tuple[Tensor, list[int]]],
        chunk: int,
    ) -> "Report":
        """The report of a prefill.

        counts: for each layer where they change, the visual tokens of every sample from there on.
        kept: by layer, flat columns `sample * chunk + column` of what stayed, and how many of them
        each sample has. chunk: columns of the input.
        """
        per_layer: list[list[int]] = []
        for (layer, tokens), (until, _) in zip(
            counts, [*counts[1:], (num_layers, [])], strict=True
        ):
            per_layer += [tokens] * (until - layer)
        total = sum(map(sum, per_layer))
        return Report(
            plan=plan,
            tokens=tuple(zip(*per_layer, strict=True)),
            average=total / (num_layers * images) if images else 0.0,
            path=path,
            path_reason=path_reason,
            select_ms=select_ms,
            _kept=kept,
            _chunk=chunk,
        )


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """The result of a call and its milliseconds, between two waits for the device."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    result = call()
    return result, (now() - start) * 1e3
