"""What a patch was asked for, resolved for one model; never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from uuid import uuid4

from vtfast.methods.stage import Stage, stages_of
from vtfast.plan import Plan


@dataclass(frozen=True)
class PatchConfig:
    """The arguments of `vtfast.patch`, which documents them; `Handle.set` replaces the plan.

    num_layers, added: of the model, as in `Parts`. seed: as it was given; `picks_seed` is the one
    in force. patch: names the patch, the same for all plans that it is set to.
    """

    plan: Plan
    num_layers: int
    added: int
    seed: int | None
    positions: str
    impl: str
    path: str
    record: bool
    strict_labels: bool
    patch: str = field(default_factory=lambda: uuid4().hex)

    @cached_property
    def stages(self) -> Mapping[int, Stage]:
        """By layer, ascending. There is always one at layer 0: there padding goes in the packed
        layout, and packed samples get rows of their own."""
        return stages_of(self.plan.stages, self.num_layers)

    @cached_property
    def picks_seed(self) -> int:
        """Of random picks: the one given to the patch, else the plan's own, else 0."""
        return next((int(s) for s in (self.seed, self.plan.seed) if s is not None), 0)

    @cached_property
    def due(self) -> frozenset[int]:
        """Layers at which a forward has something to do."""
        scored = (stage.score_layer for stage in self.stages.values())
        layers = {*range(1, self.added + 1), *scored, *self.stages}
        return frozenset(layer for layer in layers if layer is not None)

    @cached_property
    def needs(self) -> frozenset[str]:
        """What has to be prepared for the methods, as `Method.needs`."""
        return frozenset().union(*(stage.method.needs for stage in self.stages.values()))
