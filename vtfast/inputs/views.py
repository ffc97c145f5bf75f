"""Which tokens of which picture a patched model kept: what `vtfast.cli._picture` draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image
from torch import Tensor

from vtfast.patching import Handle


@dataclass(frozen=True)
class StageView:
    """A stage as it ran on a picture; `kept` are the patches left, in raster order."""

    layer: int
    method: str
    kept: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A picture as a raster of visual tokens, and what each stage left of it.

    Attributes:
        picture: as the model is given it; one pixel more or less for a token does not matter.
        grid: rows and columns of visual tokens.
        stages: what was kept after each; empty for the unpatched model.
        name: what to call the picture in print.
    """

    picture: Image
    grid: tuple[int, int]
    stages: tuple[StageView, ...] = ()
    name: str = "what the model is given"

    @property
    def tokens(self) -> int:
        """Visual tokens of the picture."""
        return self.grid[0] * self.grid[1]


def stage_views(handle: Handle, columns: Tensor, row: int = 0) -> tuple[StageView, ...]:
    """What each stage of a patch with `record=True` left of one sample's visual tokens.

    columns: int64 [n], where the sample's visual tokens stand in its input row, ascending; `kept`
    of the views counts them from 0, over all pictures of the sample.
    """
    kept = handle.report.kept if handle.report else {}
    left = tuple(range(len(columns)))
    views = []
    for stage in handle.plan.stages:
        if stage.layer in kept:  # a stage that drops nothing is not recorded
            there = kept[stage.layer][row].to(columns.device)
            left = tuple((columns[:, None] == there).any(1).nonzero()[:, 0].tolist())
        views.append(StageView(stage.layer, stage.method, left))
    return tuple(views)


def cut(views: Sequence[View], stages: Sequence[StageView], skip: Sequence[int]) -> list[View]:
    """Pictures with their share of what was kept of a whole sample.

    The sample's visual tokens are those of `views` one after another, `skip[i]` that are no patch
    (a class token) before those of view i.
    """
    out, start = [], 0
    for view, before in zip(views, skip, strict=True):
        start += before
        own = range(start, start + view.tokens)
        mine = [
            StageView(s.layer, s.method, tuple(k - start for k in s.kept if k in own))
            for s in stages
        ]
        out.append(replace(view, stages=tuple(mine)))
        start += view.tokens
    return out
