"""A stage of a plan as one model runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vtfast.methods.registry import Method, method
from vtfast.methods.segments import Segment, join, split
from vtfast.plan import Prune


@dataclass(frozen=True)
class Stage:
    """A stage of the plan, resolved for one model."""

    prune: Prune
    method: Method
    until: int  # first layer of the next stage, or the number of layers

    @staticmethod
    def that_keeps_all(until: int) -> "Stage":
        """A stage at layer 0 that drops nothing."""
        return Stage(Prune(0, "uniform", 1.0), method("uniform"), until)

    @property
    def layer(self) -> int:
        """The decoder layer whose input this stage prunes."""
        return self.prune.layer

    @property
    def score_layer(self) -> int | None:
        """The layer whose attention scores the tokens; None if the method wants no scores."""
        if "scores" not in self.method.needs:
            return None
        this = self.prune.options.get("score_layer") == "this" or self.layer == 0
        return self.layer if this else self.layer - 1

    @property
    def per(self) -> str:
        """What one budget covers: "image", "frame" or "tile"."""
        return str(self.prune.options.get("per", "image"))

    def budgeted(self, segments: list[Segment]) -> list[Segment]:
        """The segments this stage has budgets for: images and clips, or their frames or tiles."""
        return join(segments) if self.per == "image" else split(segments, self.per)

    def shorten(self, segments: list[Segment]) -> list[Segment]:
        """What this stage has budgets for, with what it leaves of each."""
        budgeted = self.budgeted(segments)
        return [replace(s, left=self.prune.count(s.original, s.left)) for s in budgeted]

    def drops(self, segments: list[Segment]) -> bool:
        """Whether any of these segments would lose a token."""
        return any(self.prune.count(s.original, s.left) < s.left for s in self.budgeted(segments))


def stages_of(stages: Sequence[Prune], num_layers: int) -> dict[int, Stage]:
    """The stages of a plan for a model of so many layers, by layer. There is one at layer 0, which
    keeps all if the plan has none. Raises PlanError for a method or option that is unknown."""
    for stage in stages:
        method(stage.method).check(stage)
    ends = [stage.layer for stage in stages[1:]] + [num_layers]
    found = {s.layer: Stage(s, method(s.method), end) for s, end in zip(stages, ends, strict=True)}
    return {0: Stage.that_keeps_all(stages[0].layer), **found}
