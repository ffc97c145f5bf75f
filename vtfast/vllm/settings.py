"""What vtfast does in a vLLM server, as it is set at its start and by a request."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vtfast.errors import InputError, PlanError
from vtfast.methods.registry import method
from vtfast.plan import Plan
from vtfast.plan_file import check_seed, is_plan_file
from vtfast.prune import BUILTIN_OPTIONS, Prune, known_options

KEEP = "vtfast_keep"  # of a request, in `mm_processor_kwargs`; then a field of its pictures
VARIABLE = "VTFAST_VLLM"  # the same JSON, or the path of a plan; --additional-config wins over it
_POSITIONS = ("keep", "renumber")
_METHODS = "diversity, random or uniform"
_KNOWN = ("plan", "method", "keep", "seed", "positions")


@dataclass(frozen=True)
class Settings:
    """A stage before the language model.

    Attributes:
        stage: at layer 0. seed: of random picks.
        positions: of the tokens that stay, "keep" | "renumber", as in `vtfast.patch`.
    """

    stage: Prune
    seed: int = 0
    positions: str = "keep"

    def __post_init__(self) -> None:
        if self.positions not in _POSITIONS:
            raise InputError(f"positions={self.positions!r}: pass one of {', '.join(_POSITIONS)}")
        needs = method(self.stage.method).needs - {"image_hash"}
        if needs or self.stage.keep == 0:
            why = f"reads {' and '.join(sorted(needs))}" if needs else "leaves nothing of a picture"
            raise InputError(
                f"method {self.stage.method!r} {why}, which vLLM does not take from a plugin; pass "
                f"{_METHODS}"
            )
        method(self.stage.method).check(self.stage)
        if self.stage.options["per"] != "image":
            raise InputError(f"per={self.stage.options['per']!r}: in vLLM a budget is a picture's")

    @classmethod
    def read(cls, given: object, num_layers: int, model_type: str) -> "Settings":
        """The settings from a JSON object, or from a plan file, for a model of so many decoder
        layers and this type. Raises InputError and PlanError."""
        if isinstance(given, str):
            given = {"plan": given}
        if not isinstance(given, Mapping):
            raise InputError(f'{given!r}: pass a JSON object such as {{"keep": 0.5}}')
        if given.keys() == {"vtfast"}:  # as it stands in --additional-config
            return cls.read(given["vtfast"], num_layers, model_type)
        own: dict[str, Any] = {name: given[name] for name in _KNOWN if name in given}
        options = {name: value for name, value in given.items() if name not in _KNOWN}
        seed = None
        if "plan" in own:
            if more := [*options, *(own.keys() & {"method", "keep"})]:
                raise InputError(f"{', '.join(more)} with a plan, which has its own; leave it out")
            stage, seed = _first_stage(own["plan"], num_layers, model_type)
        else:
            name, keep = own.get("method", "diversity"), as_keep(own.get("keep", 0.5))
            _check_names(name, options)
            try:
                stage = Prune(0, name, keep, **options)
            except (PlanError, TypeError) as error:
                raise InputError(str(error)) from None
        given_seed = check_seed(own.get("seed"))
        seed = given_seed if given_seed is not None else seed
        return cls(stage, seed or 0, own.get("positions", "keep"))

    def record(self) -> dict[str, Any]:
        """These settings as `read` takes them."""
        stage = {"method": self.stage.method, "keep": self.stage.keep, **self.stage.chosen}
        return {**stage, "seed": self.seed, "positions": self.positions}

    def with_keep(self, keep: object) -> "Settings":
        """The same with the keep of a request."""
        stage = Prune(0, self.stage.method, as_keep(keep), **self.stage.chosen)
        return replace(self, stage=stage)

    def count(self, tokens: int) -> int:
        """How many of a picture's tokens stay."""
        return self.stage.count(tokens, tokens)

    def __str__(self) -> str:
        return json.dumps(self.record(), sort_keys=True)


def given_to(additional_config: object) -> Any:
    """What was set for vtfast: the entry of vLLM's `--additional-config`, else the environment's.
    None: nothing."""
    if isinstance(additional_config, Mapping) and additional_config.get("vtfast") is not None:
        return additional_config["vtfast"]
    text = os.environ.get(VARIABLE, "").strip()
    if not text or is_plan_file(text):
        return text or None
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{VARIABLE}={text!r} is no JSON ({error}); pass an object such as "
            '{"keep": 0.5}, or the path of a plan'
        ) from None


def as_keep(value: object) -> float | int:
    """The `keep` of a stage from JSON, where 1 and 1.0 are one number: up to 1 it is a share, and
    above a number of tokens."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if 0 < value <= 1:
            return float(value)
        if value > 1 and value == int(value):
            return int(value)
    raise InputError(
        f"keep={value!r}: pass a share of a picture's tokens, above 0 and up to 1, or a whole "
        "number of tokens, 2 or more"
    )


def _check_names(name: object, options: Mapping[str, object]) -> None:
    """Refuse a method that is unknown, and settings that are."""
    try:
        method(name)  # type: ignore[arg-type]
    except (PlanError, TypeError):
        raise InputError(f"method {name!r} is unknown; pass {_METHODS}") from None
    known = known_options(str(name))
    for option in sorted(options.keys() - known.keys()) if name in BUILTIN_OPTIONS else ():
        raise InputError(
            f"setting {option!r} is unknown; known are {', '.join(_KNOWN)}, and of {name} "
            f"{', '.join(known)}"
        )


def _first_stage(path: object, num_layers: int, model_type: str) -> tuple[Prune, int | None]:
    """The one stage of a plan file, and its seed."""
    if not isinstance(path, str):
        raise InputError(f"plan={path!r}: pass the path of a plan file")
    plan = Plan.load(path)
    if plan.measured is not None:
        plan.measured.check(num_layers, model_type)
    stage, *more = plan.stages
    if more or stage.layer != 0:
        other = more[0] if more else stage
        raise PlanError(
            f"plan {path}: it has a stage at layer {other.layer}, and vLLM has one number of "
            "tokens per request for all layers, so that nothing can be dropped inside the language "
            "model; pass a plan of one stage at layer 0, or run this one with vtfast.patch"
        )
    if isinstance(stage.keep, int) and stage.keep == 1:
        raise PlanError(f"plan {path}: it keeps one token of a picture; in vLLM keep two or more")
    return stage, plan.seed
