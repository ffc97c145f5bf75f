"""What a patch was asked for, resolved for one model; never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any
from uuid import uuid4

from vtfast.methods.stage import Stage, stages_of
from vtfast.plan import Plan


@dataclass(frozen=True)
class PatchConfig:
    """The arguments of `vtfast.patch`, which documents them; `Handle.set` makes one of another plan.

    num_layers: of the model. seed: as it was given; `picks_seed` is the one in force. patch: names
    the patch, whose plans may follow one another; other patches have other names.
    """

    plan: Plan
    num_layers: int
    seed: int | None
    positions: str
    impl: str
    path: str
    record: bool
    strict_labels: bool
    patch: str = field(default_factory=lambda: uuid4().hex)

    def __deepcopy__(self, memo: Any) -> "PatchConfig":
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The arguments alone: a method need not be picklable, it is found again by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def stages(self) -> Mapping[int, Stage]:
        """By layer, ascending, from layer 0 on: there is one that keeps all if the plan has none.

        There padding goes in the packed layout, and packed samples get rows of their own.
        """
        stages = stages_of(self.plan.stages, self.num_layers)
        return {0: Stage.that_keeps_all(next(iter(stages))), **stages}

    @property
    def picks_seed(self) -> int:
        """Of random picks: the one given to the patch, else the plan's own, else 0."""
        return next((int(s) for s in (self.seed, self.plan.seed) if s is not None), 0)

    @cached_property
    def scored_layers(self) -> frozenset[int]:
        """Layers whose input is kept until the next stage computes attention scores from it."""
        layers = {s.score_layer for s in self.stages.values() if s.score_layer != s.layer}
        return frozenset(layer for layer in layers if layer is not None)

    @cached_property
    def due(self) -> frozenset[int]:
        """Layers at which a forward has something to do."""
        return self.scored_layers | self.stages.keys()

    @cached_property
    def needs(self) -> frozenset[str]:
        """What has to be prepared for the methods, as `Method.needs`."""
        return frozenset().union(*(stage.method.needs for stage in self.stages.values()))
