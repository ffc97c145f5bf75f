"""`Plan`: which stages prune a model, and the token counts and costs that follow from them.

Nothing here needs a model, a tensor or a random number: how many visual tokens there are in every
layer is a pure function of the plan and of the number an image starts with.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

from vtfast import plan_file
from vtfast.errors import PlanError
from vtfast.flops import multiply_adds, text_config
from vtfast.plan_file import Measured
from vtfast.presets import check_name, is_preset_name, paper_stages, preset_stages
from vtfast.prune import Prune, whole_number

__all__ = ["Measured", "MeasuredHorizon", "Plan", "Prune"]


@runtime_checkable
class MeasuredHorizon(Protocol):
    """What a plan reads of a measured horizon: where it is (or None), for which model and task.

    It may have a `doubt`, a text: why the samples do not show this, or "" if they do.
    """

    @property
    def layer(self) -> int | None: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def model_type(self) -> str: ...
    @property
    def task(self) -> str: ...


@dataclass(frozen=True)
class Plan:
    """A validated sequence of stages; frozen, hashable, printable.

    Args:
        stages: list or tuple of `Prune`, at least one. Layers strictly increase. Keeps do not
            increase: fractions are compared with fractions, numbers of tokens with numbers of
            tokens, and 0 with both.
        name: what to call the plan in print.
        seed: int, of the random stages; `vtfast.patch(seed=)` wins over it. None: 0 there.
        measured: what the plan was measured on, as `vtfast.tune` notes it; another model type or
            number of layers then refuses the plan.

    A plan made by `preset`, `paper` or `from_horizon` also carries the average `keep` it was solved
    for, its `horizon`, and in `horizon_source` where that came from; None where there is none.

    Example: `Plan([Prune(0, "diversity", 284), Prune(20, "random", 38)]).counts(576)` → (284, 38).
    """

    stages: tuple[Prune, ...]
    name: str = "custom"
    seed: int | None = None
    measured: Measured | None = None
    keep: float | None = field(default=None, init=False)
    horizon: int | None = field(default=None, init=False)
    horizon_source: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        stages: object = self.stages
        if not isinstance(stages, (list, tuple)):
            raise PlanError(f"stages={stages!r}: expected a list of Prune; pass [Prune(...), ...]")
        if not stages:
            raise PlanError("a plan without stages prunes nothing; pass at least one Prune")
        for stage in stages:
            if not isinstance(stage, Prune):
                raise PlanError(f"{stage!r} in a plan: expected Prune(layer, method, keep)")
        if not isinstance(self.name, str):
            raise PlanError(f"name={self.name!r}: expected a string")
        object.__setattr__(self, "seed", plan_file.check_seed(self.seed))
        for before, after in itertools.pairwise(stages):
            if after.layer <= before.layer:
                raise PlanError(
                    f"{after!r} follows {before!r}: layers must strictly increase; "
                    "order the stages by layer, one per layer"
                )
        for before, after in itertools.combinations(stages, 2):
            per = before.options["per"], after.options["per"]
            keeps_all = isinstance(before.keep, float) and before.keep == 1
            if per[1] not in ("image", per[0]) and not keeps_all:
                raise PlanError(
                    f"{after!r} prunes by {per[1]} after {before!r} pruned by {per[0]}, so the "
                    f'tokens left in a {per[1]} are not known; give that stage per="{per[1]}" too'
                )
            same = type(before.keep) is type(after.keep)
            counts = isinstance(before.keep, int) and per[0] != per[1]  # of different things
            comparable = (same and not counts) or before.keep == 0
            if comparable and after.keep > before.keep:
                raise PlanError(
                    f"{after!r} keeps more than {before!r}, and a later stage never brings a token "
                    "back; lower its keep"
                )
        object.__setattr__(self, "stages", tuple(stages))

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        num_layers: int,
        keep: float | None = None,
        horizon: int | None = None,
        horizon_source: str = "given",
    ) -> Plan:
        """The plan of a preset for a model of `num_layers` decoder layers and an average budget.

        Args:
            name: `random`, `uniform`, `divprune`, `cenprune`, `cdpruner`, `scope`, `visionzip` and
                `vispruner` prune before the language model, `fastv` and `dart` at layer 2,
                `pyramiddrop` at layers L/4, L/2 and 3L/4; `random+vtw`, and all of these but
                `random`, `uniform` and `pyramiddrop` with `+random` or `+vtw`, prune again at the
                horizon; `vtw` only drops everything at one layer. `cenprune` scales as its paper
                does for LLaVA. docs/choosing.md compares them.
            keep: float in (0, 1], visual tokens per image averaged over all layers; None means 0.5
                (with `pyramiddrop` its released setting, about 0.47) and 1.0 keeps everything. Each
                stage rounds its count by itself; the average stays within half a token of keep·N,
                or within one where an image is so small that a stage keeps one token instead of
                none. `vtw` alone rounds a layer: N/(2L) tokens at most.
            horizon: int, the layer of the second stage: first-stage layer < horizon < num_layers.
                Refused for presets of one stage; `vtw` takes it in place of `keep`.
            horizon_source: where the horizon came from, in words; printed with the plan.

        Raises PlanError where the preset cannot meet `keep`, with the nearest keep that it can.
        """
        stages, share, layer = preset_stages(name, num_layers, keep, horizon)
        return cls(stages, name)._label(share, layer, None if layer is None else horizon_source)

    @classmethod
    def paper(cls, name: str, tokens: int) -> Plan:
        """A setting released with arXiv 2512.07580 for LLaVA-1.5-7B, token for token.

        Args:
            name, tokens: `"divprune+random"`, `"dart+random"`, `"divprune+vtw"` or `"dart+vtw"`,
                with 192 or 64.

        `tokens` is the paper's label. 576 tokens in 32 layers then average 191.75 and 63.75 with
        `divprune+random`, 192 and 63.75 with `dart+random`, 177.5 and 64.3 with `divprune+vtw`,
        190.4 and 64.9 with `dart+vtw`.
        """
        stages = paper_stages(name, tokens)
        plan = cls(stages, f"{name}, released setting {tokens}")
        return plan._label(None, stages[-1].layer, "the paper's")

    @classmethod
    def from_horizon(
        cls, horizon: MeasuredHorizon, keep: float | None = None, name: str = "divprune+random"
    ) -> Plan:
        """The plan of a two-stage preset, or of `vtw`, at a measured horizon.

        Where the task has none (`horizon.layer` is None) the second stage is left out, the first is
        solved again for the same `keep`, and a warning says so. Where the samples do not show the
        layer, or that there is none, the plan is made all the same; it says so and a warning too.
        """
        first, _, then = check_name(name).partition("+")
        num_layers, task = horizon.num_layers, horizon.task
        doubt = getattr(horizon, "doubt", "")
        doubted = f", {doubt}" if doubt else ""
        if horizon.layer is not None:
            if doubt:
                warnings.warn(
                    f"the horizon of {task} is uncertain: layer {horizon.layer} is the likeliest, "
                    f"but {doubt}",
                    stacklevel=2,
                )
            return cls.preset(
                name,
                num_layers=num_layers,
                keep=keep,
                horizon=horizon.layer,
                horizon_source=f"measured on {task}{doubted}",
            )
        if not then:
            raise PlanError(
                f"{task} has no horizon{doubted} and preset {name!r} cannot be planned without "
                'one; pass a preset such as "divprune+random", or use Plan.preset'
            )
        has_none = (
            f"{task} seems to have no horizon, {doubt}" if doubt else f"{task} has no horizon"
        )
        warnings.warn(f"{has_none}: {name!r} becomes {first!r} with the same keep", stacklevel=2)
        plan = cls.preset(first, num_layers=num_layers, keep=keep)
        return plan._label(plan.keep, None, f"none measured on {task}{doubted}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file (JSON) that `load` reads, and that goes wherever a plan does:
        `vtfast.patch(model, "plan.json")`, `vtfast run --plan plan.json`.

        Raises PlanError where the file cannot be written, or holds no option of a stage.
        """
        plan_file.write(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that `save` wrote. Raises PlanError, which names the file and what is wrong."""
        found = plan_file.read(path)
        keep, horizon, source = (found.pop(n) for n in ("keep", "horizon", "horizon_source"))
        try:
            return cls(**found)._label(keep, horizon, source)
        except PlanError as error:
            raise PlanError(f"plan {path}: {error}") from None

    @classmethod
    def resolve(
        cls,
        plan: str | os.PathLike[str] | Plan | Sequence[Prune],
        *,
        num_layers: int,
        keep: float | None = None,
        horizon: int | MeasuredHorizon | None = None,
        horizon_source: str = "given",
        model_type: str | None = None,
    ) -> Plan:
        """A plan that fits the model, from a preset name, a file, a `Plan` or a list of `Prune`.

        `keep` and `horizon` are those of `preset` and go with a name only. A measured horizon must
        come from a model of this `num_layers` and `model_type` (None: any); it is never rescaled.
        """
        is_file = plan_file.is_plan_file(plan)
        if isinstance(plan, str) and not is_file:
            if isinstance(horizon, MeasuredHorizon):
                _check_origin(horizon, num_layers, model_type)
                return cls.from_horizon(horizon, keep, plan)
            return cls.preset(
                plan,
                num_layers=num_layers,
                keep=keep,
                horizon=horizon,
                horizon_source=horizon_source,
            )
        for name, value in (("keep", keep), ("horizon", horizon)):
            if value is not None:
                raise PlanError(
                    f"{name}={value!r} goes with a preset name only, and the plan is a "
                    f"{'file' if is_file else type(plan).__name__}; leave it out, or pass a preset "
                    "name"
                )
        if is_file:
            plan = cls.load(plan)  # type: ignore[arg-type]
        resolved = plan if isinstance(plan, Plan) else cls(plan)  # type: ignore[arg-type]
        resolved.check(num_layers, model_type)
        return resolved

    def again(
        self, keep: float | None, horizon: Any, num_layers: int, model_type: str | None = None
    ) -> Plan:
        """The preset that this plan was made of, for another `keep` or `horizon` (None: its own);
        the plan itself if none is given. Raises PlanError for a plan that no preset made."""
        if keep is None and horizon is None:
            return self
        drops_at_one_layer = self.name == "vtw"  # by its keep or by its horizon, never by both
        is_preset = self.keep is not None or (drops_at_one_layer and self.horizon is not None)
        if not is_preset or not is_preset_name(self.name):
            given = f"horizon={horizon!r}" if keep is None else f"keep={keep!r}"
            raise PlanError(
                f"{given} alone goes with a preset, and the model's plan is {self.name!r}; pass a "
                'plan too, such as handle.set("divprune", keep=0.25)'
            )
        own = horizon is None and self.horizon is not None and not drops_at_one_layer
        found = Plan.resolve(
            self.name,
            num_layers=num_layers,
            keep=self.keep if keep is None and not drops_at_one_layer else keep,
            horizon=self.horizon if own else horizon,
            horizon_source=str(self.horizon_source) if own else "given",
            model_type=model_type,
        )
        object.__setattr__(found, "seed", self.seed)
        return found

    def check(self, num_layers: int, model_type: str | None = None) -> None:
        """Raise PlanError if a stage comes after the last of `num_layers` decoder layers, or the
        plan was measured on a model of another type (None: any) or of other layers."""
        num_layers, last = whole_number("num_layers", num_layers, least=1), self.stages[-1]
        if last.layer >= num_layers:
            raise PlanError(
                f"{last!r} but the model has {num_layers} decoder layers; "
                f"pass layers 0 to {num_layers - 1}"
            )
        if self.measured is not None:
            self.measured.check(num_layers, model_type)

    def counts(self, n: int) -> tuple[int, ...]:
        """Tokens of an image of `n` visual tokens after each stage."""
        left, counts = whole_number("n", n), []
        for stage in self.stages:
            left = stage.count(n, left)
            counts.append(left)
        return tuple(counts)

    def tokens_per_layer(self, n: int, num_layers: int) -> tuple[int, ...]:
        """Visual tokens of an image of `n` at every decoder layer's input: `num_layers` ints."""
        self.check(num_layers)
        tokens = [whole_number("n", n)] * num_layers
        for stage, left in zip(self.stages, self.counts(n), strict=True):
            tokens[stage.layer :] = [left] * (num_layers - stage.layer)
        return tuple(tokens)

    def average_tokens(self, n: int, num_layers: int) -> float:
        """Visual tokens of an image of `n`, averaged over all decoder layers."""
        tokens = self.tokens_per_layer(n, num_layers)
        return sum(tokens) / len(tokens)

    def flops_ratio(self, config: Any, n_visual: int | Sequence[int], n_text: int) -> float:
        """Prefill arithmetic of the decoder layers, as a share of the unpruned model's.

        `multiply_adds` says what is counted.

        Args:
            config: a transformers configuration, of the text model or of the whole model.
            n_visual: visual tokens of one image, or a sequence with one number per image.
            n_text: int ≥ 0, all other tokens; at least one token in all.
        """
        num_layers = text_config(config).num_hidden_layers
        images = n_visual if isinstance(n_visual, Sequence) else [n_visual]
        images = [whole_number("n_visual", n) for n in images]
        n_text = whole_number("n_text", n_text, least=0 if sum(images) else 1)
        per_layer = [n_text] * num_layers
        for n in images:
            tokens = self.tokens_per_layer(n, num_layers)
            per_layer = [sum(pair) for pair in zip(per_layer, tokens, strict=True)]
        full = multiply_adds(config, [n_text + sum(images)] * num_layers)
        return multiply_adds(config, per_layer) / full

    def describe(self, n: int, num_layers: int) -> str:
        """`str(plan)`, and the token counts of an image of `n` tokens in `num_layers` layers."""
        steps = " → ".join(str(count) for count in (n, *self.counts(n)))
        average = self.average_tokens(n, num_layers)
        return f"{self}\n  an image of {n}: {steps} tokens, {average:.2f} on average"

    def __str__(self) -> str:
        head = self.name if self.keep is None else f"{self.name}, keep {self.keep:g} on average"
        if self.horizon_source is not None:
            layer = "" if self.horizon is None else f" {self.horizon}"
            head += f", horizon{layer} ({self.horizon_source})"
        return "\n".join([head, *(f"  {stage}" for stage in self.stages)])

    def _label(self, keep: float | None, horizon: int | None, source: str | None) -> Plan:
        """Note what the plan was solved for; only right after the plan was made."""
        for name, value in (("keep", keep), ("horizon", horizon), ("horizon_source", source)):
            object.__setattr__(self, name, value)
        return self


def _check_origin(horizon: MeasuredHorizon, num_layers: int, model_type: str | None) -> None:
    for name, measured, here in (
        ("num_layers", horizon.num_layers, num_layers),
        ("model_type", horizon.model_type, model_type),
    ):
        if here is not None and measured != here:
            raise PlanError(
                f"the horizon was measured on a model with {name}={measured!r} and this one has "
                f"{here!r}; measure it on this model, or pass a layer"
            )
