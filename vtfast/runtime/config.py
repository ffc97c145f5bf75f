"""What a patch was asked for, resolved for one model; never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from vtfast.methods.stage import Stage
from vtfast.plan import Plan


@dataclass(frozen=True)
class PatchConfig:
    """The arguments of `vtfast.patch`, which documents them, and the stages of its plan.

    stages: by layer, ascending. seed: as it was given; `picks_seed` is the one in force.
    """

    plan: Plan
    stages: Mapping[int, Stage]
    seed: int | None
    positions: str
    impl: str
    path: str
    record: bool
    strict_labels: bool

    def starting_at_layer_0(self) -> "PatchConfig":
        """The same with a stage at layer 0, which keeps all if the plan has none there.

        There padding goes in the packed layout, and packed samples get rows of their own.
        """
        first = next(iter(self.stages))
        return replace(self, stages={0: Stage.that_keeps_all(first), **self.stages})

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
    def needs(self) -> frozenset[str]:
        """What has to be prepared for the methods, as `Method.needs`."""
        return frozenset().union(*(stage.method.needs for stage in self.stages.values()))
