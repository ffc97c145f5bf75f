"""Which visual tokens of which picture a patched model kept, as rasters that can be drawn."""

from collections import Counter
from dataclasses import dataclass, replace

from PIL.Image import Image
from torch import Tensor

from vtfast.inputs.prompts import Prompt
from vtfast.patching import Handle


@dataclass(frozen=True)
class StageView:
    """The patches of a picture that are left after a stage, by number in raster order."""

    layer: int
    method: str
    kept: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """A picture as a raster of visual tokens, and the patches left after each stage.

    Attributes:
        picture: as the model is given it; its sides need not be multiples of the grid's.
        grid: rows and columns of visual tokens.
        stages: one per stage of the plan; empty for the unpatched model.
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


def kept_views(prompt: Prompt, handle: Handle) -> list[View]:
    """Every picture (or tile) of a prompt and time step of its video, with what was kept of it.

    handle: that of a patch with `record=True` under which the model answered the prompt.
    """
    stages = stage_views(handle, prompt.columns)
    several = len(prompt.images) + (prompt.clip is not None) > 1
    parts = Counter(grid.number for grid in prompt.grids)
    views = []
    for grid in prompt.grids:
        steps, rows, columns = grid.columns.shape
        for step, raster in enumerate(grid.columns.reshape(steps, -1)):
            if grid.number < len(prompt.images):
                picture = prompt.as_seen(grid)
                name = prompt.images[grid.number][0] if several else View.name
                if parts[grid.number] > 1:
                    name += f", part {grid.part + 1} of {parts[grid.number]}"
            else:
                assert prompt.clip is not None
                frames = prompt.clip.frames
                each = -(-len(frames) // steps)  # frames in one time step
                first, last = step * each + 1, min((step + 1) * each, len(frames))
                picture = frames[first - 1]
                name = f"frame{f's {first}-' if last > first else ' '}{last} of {len(frames)}"
            place = {int(c): i for i, c in enumerate(raster)}
            kept = [[place.get(int(prompt.columns[k])) for k in s.kept] for s in stages]
            mine = [
                replace(stage, kept=tuple(k for k in own if k is not None))
                for stage, own in zip(stages, kept, strict=True)
            ]
            views.append(View(picture, (rows, columns), tuple(mine), name))
    return views


def stage_views(handle: Handle, columns: Tensor, sample: int = 0) -> tuple[StageView, ...]:
    """The visual tokens that each stage of a patch with `record=True` left of one sample.

    columns: int64 [n], ascending positions of the sample's visual tokens in its row of input_ids;
        `kept` of the views numbers them from 0, over all pictures of the sample.
    """
    kept = handle.report.kept if handle.report else {}
    left = tuple(range(len(columns)))
    views = []
    for stage in handle.plan.stages:
        if stage.layer in kept:  # a stage that drops nothing is not recorded
            there = kept[stage.layer][sample].to(columns.device)
            left = tuple((columns[:, None] == there).any(1).nonzero()[:, 0].tolist())
        views.append(StageView(stage.layer, stage.method, left))
    return tuple(views)
