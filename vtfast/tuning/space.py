"""The plans among which `vtfast.tune` looks: one to three stages, and what each would cost."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from vtfast.errors import InputError
from vtfast.flops import multiply_adds, text_config
from vtfast.methods.registry import method
from vtfast.plan import Plan
from vtfast.plan_file import is_plan_file
from vtfast.prune import Prune

# Shares of a picture's tokens that the first stage keeps: about three quarters of the one before.
KEEPS = (0.9, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.09375, 0.0625)
ENGINES = ("transformers", "vllm")
OBJECTIVES = ("flops", "time", "cache")
_FEWER = 0.125  # what a random stage at the horizon keeps of that: the proportion of the papers


def space(
    num_layers: int,
    horizon: int | None,
    methods: Sequence[str],
    keeps: Sequence[float] = KEEPS,
    engine: str = "transformers",
) -> list[Plan]:
    """All plans of these methods for a model of so many layers.

    - One stage, at layer 0 and at a quarter, half and three quarters of the layers; at layer 2 in
      place of 0 for methods that read the attention scores of the language model. Or everything
      is dropped at any one layer.
    - A stage at the first or second of these layers, and at the horizon, or a sixteenth of the
      layers before or after it, either nothing stays or an eighth at random.
    - Three stages: half of what the first one kept stays at a quarter of the layers (at random, or
      by the same method), and nothing from the horizon on.

    For vLLM: one stage, at layer 0, of methods that read no scores.

    horizon: from which layer on nothing is needed; None: there is none, and no second stage.
    methods: names, and plan files: see `stages_to_try`.
    """
    likes = stages_to_try(methods)
    if engine == "vllm":
        before = [like for like in likes if "scores" not in method(like.method).needs]
        return [named((_like(like, 0, keep),)) for like, keep in product(before, keeps)]
    middle, half, late = (
        min(max(1, num_layers * quarters // 4), num_layers - 1) for quarters in (1, 2, 3)
    )
    found: dict[tuple[Prune, ...], None] = {}
    for like, keep in product(likes, keeps):
        first = min(2, num_layers - 1) if "scores" in method(like.method).needs else 0
        for layer in dict.fromkeys((first, max(first, middle))):
            stage = _like(like, layer, keep)
            found[(stage,)] = None
            for end in _ends(horizon, num_layers, layer):
                found[stage, Prune(end, "drop", 0)] = None
                found[stage, Prune(end, "random", keep * _FEWER)] = None
            if horizon is not None and layer < middle < horizon:
                for second in dict.fromkeys((Prune(0, "random", 1.0), like)):
                    between = _like(second, middle, keep / 2)
                    found[stage, between, Prune(horizon, "drop", 0)] = None
        for layer in (half, late):
            found[(_like(like, max(first, layer), keep),)] = None
    for layer in range(1, num_layers):
        found[(Prune(layer, "drop", 0),)] = None
    return [named(stages) for stages in found]


def _like(stage: Prune, layer: int, keep: float) -> Prune:
    return Prune(layer, stage.method, keep, **stage.chosen)


def _ends(horizon: int | None, num_layers: int, after: int) -> Iterator[int]:
    if horizon is not None:
        step = max(1, num_layers // 16)
        for layer in (horizon - step, horizon, horizon + step):
            if after < layer < num_layers:
                yield layer


def named(stages: tuple[Prune, ...]) -> Plan:
    """A plan by the name of what it does: `diversity 0.5, random 0.0625 at 8`."""
    parts = []
    for stage in stages:
        options = [f"{option}={value}" for option, value in stage.chosen.items()]
        share = [f"{stage.keep:.4g}" if isinstance(stage.keep, float) else f"{stage.keep} tokens"]
        at = [f"at {stage.layer}"] if stage.layer else []
        kept = [] if stage.method == "drop" else [*share, *options]
        parts.append(" ".join([stage.method, *kept, *at]))
    return Plan(stages, ", ".join(parts))


def stages_to_try(methods: Sequence[str]) -> tuple[Prune, ...]:
    """A stage of each method, and the first one of each plan file, whose method and options are
    meant. Raises InputError and PlanError."""
    good = isinstance(methods, Sequence) and all(isinstance(name, str) for name in methods)
    if isinstance(methods, str) or not good or not methods:
        raise InputError(f"methods={methods!r}: pass a list of at least one name")
    found = []
    for name in methods:
        first = Plan.load(name).stages[0] if is_plan_file(name) else None
        own, options = (first.method, first.chosen) if first else (name, {})
        if method(own).name == "drop":
            raise InputError('methods: "drop" keeps nothing and is always tried; leave it out')
        found.append(Prune(0, own, 1.0, **options))
    return tuple(dict.fromkeys(found))


class Costs:
    """What plans cost on some questions, as shares of the unpruned model's; no model is run.

    Args:
        config: of the model.
        sizes: visual tokens, pictures (taken to be of one size) and other tokens of a question →
            how many questions are of this size.
    """

    def __init__(self, config: Any, sizes: Mapping[tuple[int, int, int], int]) -> None:
        self._config, self._sizes = config, sizes
        text = text_config(config)
        self._layers = text.num_hidden_layers
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * self._layers
        self._caches = np.array([kind != "linear_attention" for kind in kinds])
        self._full = self._summed(None)

    def flops(self, plan: Plan) -> float:
        """Multiply-adds of the decoder layers in prefill; see `vtfast.flops`."""
        return float(self._summed(plan)[0] / self._full[0])

    def cache(self, plan: Plan) -> float:
        """Tokens that the layers' KV cache holds after the prefill."""
        return float(self._summed(plan)[1] / self._full[1])

    def tokens(self, plan: Plan) -> float:
        """Visual tokens of a question, averaged over layers and questions."""
        total = sum(
            number * float(np.mean(self._kept(plan, visual, pictures)))
            for (visual, pictures, _), number in self._sizes.items()
        )
        return total / sum(self._sizes.values())

    def _summed(self, plan: Plan | None) -> np.ndarray:
        """Multiply-adds and cached tokens of all questions."""
        total = np.zeros(2)
        for (visual, pictures, text), number in self._sizes.items():
            tokens = text + self._kept(plan, visual, pictures)
            held = tokens[self._caches].sum()
            total += number * np.array([multiply_adds(self._config, tokens.tolist()), held])
        return total

    def _kept(self, plan: Plan | None, visual: int, pictures: int) -> np.ndarray:
        """Visual tokens of a question in each layer, int64."""
        if plan is None:
            return np.full(self._layers, visual)
        sizes = [visual // pictures + (i < visual % pictures) for i in range(pictures)]
        return np.sum([plan.tokens_per_layer(n, self._layers) for n in sizes], 0)
