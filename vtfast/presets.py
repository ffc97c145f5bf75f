"""The arithmetic behind `Plan.preset`: the stages of a preset that meet an average budget.

The budget `keep` is the share of visual tokens *averaged over all L decoder layers*, the accounting
of the papers; a layer before the first stage counts as 1. With K the layer of the first stage, H
the horizon, f1 and f2 the shares kept by the first stage and from the horizon on:

    X           keep·L = K + f1·(L-K)
    X+vtw       keep·L = K + f1·(H-K)                  everything is dropped at H
    X+random    keep·L = K + f1·(H-K) + f2·(L-H)       with f2 = f1/8, unless that makes f1 > 1:
                                                       then f1 = 1 and f2 is what remains
    pyramiddrop keep·L = K + f·(M-K) + f²·(N-M) + f³·(L-N)       K, M, N nearest to L/4, L/2, 3L/4

PyramidDrop without a keep takes f = 1/2, as released: 15/32 on average where 4 divides L. A keep
that would need a share ≤ 0 or > 1 is refused. Sources: the settings released with arXiv 2512.07580,
where f2/f1 is about 1/8 (DivPrune 284, then 38 random tokens), and with PyramidDrop, arXiv
2410.17247 (layers 8, 16 and 24 of 32).
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Callable
from functools import partial

from vtfast.errors import PlanError
from vtfast.prune import Prune, whole_number

# X: layer and method of the first stage. 2 is the layer K of the FastV and DART papers.
FIRST_STAGES: dict[str, Callable[[float], Prune]] = {
    "random": partial(Prune, 0, "random"),
    "uniform": partial(Prune, 0, "uniform"),
    "fastv": partial(Prune, 2, "topk"),
    "divprune": partial(Prune, 0, "diversity"),
    "dart": partial(Prune, 2, "dart"),
    "cenprune": partial(Prune, 0, "diversity", centre=True, distinct="minmax"),
    "cdpruner": partial(Prune, 0, "cdpruner"),
    "scope": partial(Prune, 0, "scope"),
    "visionzip": partial(Prune, 0, "visionzip"),
    "vispruner": partial(Prune, 0, "vispruner"),
}
_OWN: dict[str, Callable[[float], Prune]] = {}  # of methods that users registered
_BEFORE_A_HORIZON = [name for name in FIRST_STAGES if name not in ("random", "uniform")]
PRESETS = (
    *FIRST_STAGES,
    "pyramiddrop",
    "vtw",
    "random+vtw",
    *(f"{first}+{then}" for first in _BEFORE_A_HORIZON for then in ("random", "vtw")),
)
IN_WORDS = (
    f"random, uniform, pyramiddrop, vtw, random+vtw; {', '.join(_BEFORE_A_HORIZON)}, each also "
    "with +random or +vtw"
)

# Released LLaVA-1.5-7B settings (N = 576, L = 32), each stage as layer, method, tokens.
PAPER: dict[tuple[str, int], tuple[tuple[int, str, int], ...]] = {
    ("divprune+random", 192): ((0, "diversity", 284), (20, "random", 38)),
    ("divprune+random", 64): ((0, "diversity", 96), (20, "random", 10)),
    ("dart+random", 192): ((2, "dart", 252), (20, "random", 38)),
    ("dart+random", 64): ((1, "dart", 60), (20, "random", 27)),
    ("divprune+vtw", 192): ((0, "diversity", 284), (20, "drop", 0)),
    ("divprune+vtw", 64): ((0, "diversity", 98), (21, "drop", 0)),
    ("dart+vtw", 192): ((2, "dart", 260), (21, "drop", 0)),
    ("dart+vtw", 64): ((1, "dart", 60), (26, "drop", 0)),
}

DEFAULT_KEEP = 0.5
_RATIO = 8  # f1/f2
_HALF = 0.5  # PyramidDrop's share from stage to stage
_SLACK = 1e-9  # in layers: with keep = layers/L, keep·L may miss a whole number by rounding

# Stages, the average keep they were solved for, and the horizon; None where there is none.
Solved = tuple[tuple[Prune, ...], float | None, int | None]


def check_name(name: object) -> str:
    """`name` if it is a preset of this version, else PlanError."""
    if isinstance(name, str) and is_preset_name(name):
        return name
    yours = f"; yours: {', '.join(_OWN)}, likewise" if _OWN else ""
    raise PlanError(f"unknown preset {name!r}{_hint(str(name))}; pass {IN_WORDS}{yours}")


def is_preset_name(name: str) -> bool:
    """Whether there is a preset of this name: of vtfast, or of a method that was registered."""
    first, plus, then = name.partition("+")
    return name in PRESETS or (first in _OWN and then in (("random", "vtw") if plus else ("",)))


def add_preset(name: str, layer: int) -> None:
    """Add the presets of a user's method: alone, and with +random and +vtw."""
    _OWN[name] = partial(Prune, layer, name)


def _hint(name: str) -> str:
    """The preset that may have been meant: that of a method, or one of nearly this name."""
    of_method = [preset for preset, prune in FIRST_STAGES.items() if prune(1.0).method == name]
    near = of_method[:1] or difflib.get_close_matches(name.lower(), [*PRESETS, *_OWN], 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def needs_horizon(name: str) -> bool:
    """Whether preset `name` cannot be planned without a horizon."""
    return "+" in check_name(name)


def preset_stages(name: str, num_layers: int, keep: float | None, horizon: int | None) -> Solved:
    """Stages of a preset.

    Args:
        name: one of `PRESETS`.
        num_layers: int ≥ 1, decoder layers of the language model (L).
        keep: float in (0, 1]; None means 0.5.
        horizon: int, first-stage layer < H < L; None for presets of one stage. `"vtw"` takes one of
            `keep` and `horizon`.

    Returns the stages, the average keep and the horizon. Raises PlanError where the preset cannot
    meet `keep`, with the nearest keep that it can.
    """
    check_name(name)
    num_layers = whole_number("num_layers", num_layers, least=1)
    if name == "vtw":
        return _vtw(num_layers, keep, horizon)
    if horizon is not None and "+" not in name:
        raise PlanError(f"horizon={horizon!r}: preset {name!r} has no horizon; leave it out")
    if name == "pyramiddrop":
        return _pyramid(num_layers, keep)
    share = _average(keep)
    first, _, then = name.partition("+")
    prune = _OWN.get(first) or FIRST_STAGES[first]
    layer = prune(1.0).layer
    if layer >= num_layers:
        raise PlanError(
            f"preset {name!r} prunes at layer {layer} but the model has {num_layers} decoder "
            "layers; take a preset that prunes at layer 0"
        )
    end = _between(name, layer, horizon, num_layers) if then else num_layers

    budget = share * num_layers - layer  # in layers that see every token, from the first stage on
    _check_reachable(name, share, layer, num_layers)
    if then == "random":
        f1 = min(1.0, budget / (end - layer + (num_layers - end) / _RATIO))
        f2 = (budget - f1 * (end - layer)) / (num_layers - end)
        return (prune(f1), Prune(end, "random", f2)), share, end
    if budget > end - layer + _SLACK:
        raise PlanError(
            f"keep={share:g}: preset {name!r} drops every visual token at layer {end} of "
            f"{num_layers}; the largest reachable keep is {_at_most(end / num_layers)}"
        )
    stage = prune(min(1.0, budget / (end - layer)))
    return ((stage, Prune(end, "drop", 0)), share, end) if then else ((stage,), share, None)


def paper_stages(name: str, tokens: int) -> tuple[Prune, ...]:
    """Stages of a released setting, as numbers of tokens of a 576-token image."""
    released = ", ".join(f"({known!r}, {label})" for known, label in PAPER)
    for key, stages in PAPER.items():
        if key == (name, tokens):
            return tuple(Prune(*stage) for stage in stages)
    raise PlanError(
        f"no released setting of {name!r} for {tokens!r} tokens; pass one of {released}"
    )


def _pyramid(num_layers: int, keep: float | None) -> Solved:
    """Three stages by the scores of their own layers, each keeping the same share of the rest."""
    if num_layers < 4:
        raise PlanError(
            f"preset 'pyramiddrop' prunes at three layers after the first and the model has "
            f"{num_layers} decoder layers; take a preset of one stage"
        )
    layers = [math.floor(i * num_layers / 4 + 0.5) for i in (1, 2, 3)]
    spans = [b - a for a, b in itertools.pairwise([0, *layers, num_layers])]

    def average(share: float) -> float:
        return sum(span * share**i for i, span in enumerate(spans)) / num_layers

    low, high = 0.0, _HALF
    if keep is not None:
        keep, high = _average(keep), 1.0
        _check_reachable("pyramiddrop", keep, layers[0], num_layers)
        for _ in range(60 if keep < 1 else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if average(middle) < keep else (low, middle)
    stages = [
        Prune(layer, "topk", high ** (i + 1), score_layer="this") for i, layer in enumerate(layers)
    ]
    return tuple(stages), average(_HALF) if keep is None else keep, None


def _check_reachable(name: str, share: float, layer: int, num_layers: int) -> None:
    """Refuse an average that the layers before the first stage use up."""
    if layer and share * num_layers - layer <= _SLACK:
        raise PlanError(
            f"keep={share:g}: preset {name!r} keeps everything in the first {layer} of "
            f"{num_layers} layers; the smallest reachable keep is {_above(layer / num_layers)}"
        )


def _vtw(num_layers: int, keep: float | None, horizon: int | None) -> Solved:
    """Drop everything at one layer: the horizon, or the layer nearest to keep·L."""
    if horizon is not None:
        if keep is not None:
            raise PlanError(
                f"keep={keep!r} and horizon={horizon!r}: preset 'vtw' drops everything at one "
                "layer, which either one determines; pass one"
            )
        layer = whole_number("horizon", horizon)
        if layer >= num_layers:
            raise PlanError(
                f"horizon={layer}: the model has {num_layers} decoder layers; "
                f"pass 0 <= horizon < {num_layers}"
            )
        return (Prune(layer, "drop", 0),), None, layer
    share = _average(keep)
    layer = math.floor(share * num_layers + 0.5)
    if layer == num_layers:
        raise PlanError(
            f"keep={share:g}: preset 'vtw' would drop nothing, as {share:g} of {num_layers} layers "
            f"rounds to all of them; pass a keep below {_at_most(1 - 0.5 / num_layers)}"
        )
    return (Prune(layer, "drop", 0),), share, None


def _average(keep: object) -> float:
    if keep is None:
        return DEFAULT_KEEP
    # An int is refused although 1 is in range: in a Prune, 1 is one token and 1.0 is all of them.
    if isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral):
        share = float(keep)
        if 0 < share <= 1:
            return share
    raise PlanError(
        f"keep={keep!r}: with a preset it is the average share of visual tokens, a float in "
        "(0, 1]; pass one (1.0 keeps all), or a list of Prune for numbers of tokens"
    )


def _between(name: str, layer: int, horizon: int | None, num_layers: int) -> int:
    expected = f"pass {layer} < horizon < {num_layers}"
    if horizon is None:
        raise PlanError(f"preset {name!r} needs a horizon; {expected}")
    value = whole_number("horizon", horizon)
    if layer < value < num_layers:
        return value
    raise PlanError(
        f"horizon={value}: preset {name!r} first prunes at layer {layer} and the model has "
        f"{num_layers} decoder layers; {expected}"
    )


def _above(bound: float) -> str:
    """The next number of four decimals above `bound`, so that the value an error names is valid."""
    return f"{(math.floor(bound * 1e4 + 1e-6) + 1) / 1e4:g}"


def _at_most(bound: float) -> str:
    """`bound` rounded down to four decimals, so that the value an error names is valid."""
    return f"{math.floor(bound * 1e4 + 1e-6) / 1e4:g}"


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
