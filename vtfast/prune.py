"""One stage of a pruning plan: at which layer, by which method, how many visual tokens stay.

A stage is a value: validated when made, frozen, hashable. How many tokens it keeps is arithmetic on
the host (`Prune.count`); the method it names decides which ones.
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from vtfast.errors import PlanError

# The methods that come with the package and the options each knows: allowed values, default first.
# Any other method was registered by a user; a model that is patched checks its options.
_SCORE_LAYER = {"score_layer": ("previous", "this")}
BUILTIN_OPTIONS: Mapping[str, Mapping[str, tuple[str | bool, ...]]] = {
    "random": {},
    "topk": _SCORE_LAYER,
    "diversity": {"centre": (False, True), "distinct": ("none", "minmax", "sigmoid")},
    "drop": {},
    "dart": {"official_budget": (False, True)},
    "uniform": {},
    "cdpruner": {"relevance": ("similar", "opposite")},
    "scope": {},
    "visionzip": {},
    "vispruner": {},
}
_IN_WORDS = ("per", "official_budget")  # options that a printed stage tells otherwise
# Understood for every method: what one budget covers.
COMMON_OPTIONS: Mapping[str, tuple[str | bool, ...]] = {"per": ("image", "frame", "tile")}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Prune:
    """Keep some of an image's visual tokens from the input of one decoder layer on.

    Args:
        layer: int ≥ 0, the decoder layer of the language model whose input is pruned (0-based;
            0 = after the projector or merger, before the language model).
        method: `"random"`, `"uniform"`, `"diversity"`, `"cdpruner"`, `"scope"`, `"visionzip"`,
            `"vispruner"`, `"topk"`, `"dart"`, `"drop"`, or a registered name. Whether it is
            registered is checked when a model is patched. docs/choosing.md compares them.
        keep: a float in [0, 1] is a fraction of the image's *original* tokens (1.0 keeps all), an
            int ≥ 0 is a number of tokens per image (1 keeps one). `"drop"` takes 0 only. Half a
            token is rounded up: 0.5 of 577 is 289, where papers' code that rounds to even keeps
            288; pass an int to keep as many as it does.
        options: `per="image" | "frame" | "tile"` for every method: whether one budget covers an
            image or clip, a frame of a clip, or a tile of an image.
            `score_layer="previous" | "this"` for `"topk"` and registered methods.
            `official_budget=True` for `"dart"`: keeps 4 + 8·floor(k/8) tokens instead of k, as its
            code does. `centre=True` and `distinct="minmax" | "sigmoid"` for `"diversity"`,
            `relevance="opposite"` for `"cdpruner"`: see `vtfast.methods`. A registered method gets
            every other option as it is given: those that its function declares, or all. Values
            must be hashable.

    Raises PlanError for anything else. Two stages are equal when all of this is equal. A keep of 1
    differs from 1.0; an option given its default value equals the option left out.

    Example: `Prune(0, "diversity", 0.5).count(577, 577)` → 289.
    """

    layer: int
    method: str
    keep: float | int
    _options: tuple[tuple[str, object], ...]

    def __init__(self, layer: int, method: str, keep: float | int, **options: object) -> None:
        if not isinstance(method, str) or not method:
            raise PlanError(f'method={method!r}: expected a name such as "random"; pass a string')
        values: dict[str, object] = {
            "layer": whole_number("layer", layer),
            "method": method,
            "keep": _keep(method, keep),
            "_options": _options(method, options),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def options(self) -> Mapping[str, object]:
        """The method's options, read-only, with the defaults filled in."""
        return MappingProxyType(dict(self._options))

    def count(self, original: int, left: int) -> int:
        """Number of tokens of one image after this stage.

        Args:
            original: int ≥ 0, tokens the image had to begin with (N).
            left: int ≥ 0, tokens it still has before this stage.

        Returns `min(floor(keep·N + 0.5), left)` for a fraction and `min(keep, left)` for a number
        of tokens; at least 1, unless `keep` is 0 or no token is left. With `official_budget` that
        number k first becomes 4 + 8·floor(k/8).
        """
        original, left = whole_number("original", original), whole_number("left", left)
        if isinstance(self.keep, int):
            wanted = self.keep
        else:
            wanted = max(math.floor(self.keep * original + 0.5), 1 if self.keep > 0 else 0)
        if self._has_official_budget and wanted:
            wanted = 4 + wanted // 8 * 8
        return min(wanted, left)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Prune) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [str(self.layer), f'"{self.method}"', repr(self.keep)]
        parts += [f"{name}={value!r}" for name, value in self.chosen.items()]
        return f"Prune({', '.join(parts)})"

    @property
    def chosen(self) -> dict[str, object]:
        """The options that have no default, or not theirs."""
        defaults = {name: values[0] for name, values in known_options(self.method).items()}
        return {k: v for k, v in self._options if k not in defaults or v != defaults[k]}

    def __str__(self) -> str:
        kept = f"{self.keep:.2%}" if isinstance(self.keep, float) else str(self.keep)
        kept = f"{kept} of each {self.options['per']}'s tokens" if self.keep else "nothing"
        if self._has_official_budget and self.keep:
            kept += ", k of them rounded to 4 + 8·floor(k/8)"
        told = ", ".join(f"{k}={v!r}" for k, v in self.chosen.items() if k not in _IN_WORDS)
        return f"layer {self.layer}: {self.method}{f' ({told})' * bool(told)} keeps {kept}"

    @property
    def _has_official_budget(self) -> bool:
        return self.method == "dart" and bool(self.options["official_budget"])

    def _key(self) -> tuple[object, ...]:
        # 1 == 1.0 in Python, but one token is not all tokens.
        return (self.layer, self.method, type(self.keep), self.keep, self._options)


def whole_number(name: str, value: object, least: int = 0) -> int:
    """`value` as a Python int, or PlanError; bools are refused, NumPy integers are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise PlanError(f"{name}={value!r}: expected a whole number >= {least}; pass an int")
    return int(value)


def _keep(method: str, keep: object) -> float | int:
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise PlanError(
            f"keep={keep!r}: expected a fraction in [0, 1] or a number of tokens; "
            "pass a float such as 0.5 or an int such as 288"
        )
    if isinstance(keep, numbers.Integral):
        value: float | int = whole_number("keep", keep)
    else:
        value = float(keep) + 0.0  # -0.0 becomes 0.0
        if not 0 <= value <= 1:  # false for NaN too
            raise PlanError(
                f"keep={value!r}: a float is a fraction in [0, 1] of the image's visual tokens; "
                "pass one, or an int for a number of tokens"
            )
    if method != "drop":
        return value
    if value != 0:
        raise PlanError(f'keep={value!r} with method "drop", which keeps nothing; pass keep=0')
    return 0


def known_options(method: str) -> dict[str, tuple[str | bool, ...]]:
    """The options that vtfast itself reads, and their values, default first."""
    return {**COMMON_OPTIONS, **BUILTIN_OPTIONS.get(method, _SCORE_LAYER)}


def _options(method: str, given: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    known = known_options(method)
    for name, value in given.items():
        if name in known:
            if not isinstance(value, type(known[name][0])) or value not in known[name]:
                allowed = " or ".join(repr(choice) for choice in known[name])
                raise PlanError(f"{name}={value!r} with method {method!r}: pass {allowed}")
        elif method in BUILTIN_OPTIONS or name.startswith("_"):
            raise PlanError(
                f"method {method!r} has no option {name!r}; its options are {', '.join(known)}"
            )
        try:
            hash(value)
        except TypeError:
            raise PlanError(
                f"{name}={value!r}: a plan is hashable, so its options must be; pass a tuple "
                "instead of a list"
            ) from None
    defaults = {name: values[0] for name, values in known.items()}
    return tuple(sorted({**defaults, **given}.items()))
