"""Run a method and apply its selection: which tokens stay, and where they are afterwards."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from vtfast.kernels.image_hash import mix64
from vtfast.runtime.host_read import to_device
from vtfast.runtime.visual_tokens import Segment, VisualTokens


@dataclass(frozen=True)
class Shortened:
    """The packed tokens after a stage.

    Attributes:
        stay: int64 [tokens after], ascending: which of the tokens before are still there.
        kept: int64 [visual tokens after], where those among them that are visual were before.
        visual: int64 [visual tokens after], where they are now.
        lengths: tokens of each sample.
        segments: the images, clips or frames, with what is left of each.
    """

    stay: Tensor
    kept: Tensor
    visual: Tensor
    lengths: list[int]
    segments: list[Segment]


def shorten(
    chosen: Tensor,
    visual: Tensor,
    lengths: Sequence[int],
    segments: Sequence[Segment],
    keep: Sequence[int],
) -> Shortened:
    """Drop the visual tokens a method has not chosen; text stays.

    chosen: [sum(keep)], numbers into `visual`, int64 [n], which packed tokens are visual.
    lengths: tokens of each sample. keep: tokens chosen of each segment.
    """
    stays = torch.ones(sum(lengths), dtype=torch.bool, device=visual.device)
    stays.index_fill_(0, visual, False)
    kept = visual[chosen]
    stays.index_fill_(0, kept, True)
    shorter = list(lengths)
    for segment, count in zip(segments, keep, strict=True):
        shorter[segment.sample] -= segment.left - count
    left = [replace(s, left=count) for s, count in zip(segments, keep, strict=True)]
    stay = torch.nonzero_static(stays, size=sum(shorter))[:, 0]
    return Shortened(stay, kept, (stays.cumsum(0) - 1)[kept], shorter, left)


Result = TypeVar("Result")


def timed(device: torch.device, call: Callable[[], Result]) -> tuple[Result, float]:
    """What `call` returns, and the milliseconds it took; waits for the device."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, (time.perf_counter() - start) * 1e3


def image_hashes(
    visual: VisualTokens,
    segments: Sequence[Segment],
    seen: Tensor | None,
    per_frame: bool,
    device: torch.device,
) -> Tensor:
    """int64, one for each image or clip, or with `per_frame` for each of `segments`.

    Made from the pixels. Without pixels it is the number of the picture in its sample, plus the
    number of pictures that the cache has `seen` before, int64 [samples].
    """
    if visual.image_hash is not None:
        hashes = visual.image_hash().to(device)
    else:
        hashes = to_device([i for n in visual.images for i in range(n)], device)
        if seen is not None:
            samples = [b for b, n in enumerate(visual.images) for _ in range(n)]
            hashes = hashes + seen[to_device(samples, device)]
    if not per_frame:
        return hashes
    hashes = hashes[to_device([s.image for s in segments], device)]
    return mix64(hashes, to_device([s.frame for s in segments], device))
