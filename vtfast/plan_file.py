"""Plans as files: JSON with a version, the stages, a seed, and what the plan was measured on.

    {"vtfast_plan": 1, "name": "tuned", "seed": 0,
     "stages": [{"layer": 0, "method": "diversity", "keep": 0.5, "options": {}}],
     "measured": {"model_type": "llava", "num_layers": 32, "task": "pope", "samples": 1000,
                  "loss": 0.002, "low": -0.004, "high": 0.009, "confidence": 0.95}}

A `keep` of 1 is one token and of 1.0 all of them, in a file as in a `Prune`. `Plan.save` and
`Plan.load` are what to use.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from vtfast.errors import PlanError
from vtfast.prune import Prune

VERSION = 1
_LABELS = {"keep": float, "horizon": int, "horizon_source": str}  # of a plan made by `Plan.preset`
_KNOWN = {"vtfast_plan", "name", "seed", "stages", "measured", *_LABELS}


@dataclass(frozen=True)
class Measured:
    """What a plan was measured on; its file says it, and another model refuses the plan.

    Attributes:
        model_type, num_layers: of the model, and its decoder layers.
        task: name of the questions.
        samples: questions that the loss was measured on.
        loss: share of all answers that the unpruned model has right and the plan has not, less
            those that are right under the plan alone.
        low, high: bounds of the true loss, each at one-sided `confidence`, in (0.5, 1).
    """

    model_type: str
    num_layers: int
    task: str
    samples: int
    loss: float
    low: float
    high: float
    confidence: float

    def check(self, num_layers: int, model_type: str | None) -> None:
        """Refuse a model of other layers, or of another type (None: any)."""
        here = {"num_layers": num_layers, "model_type": model_type}
        for name, value in here.items():
            own = getattr(self, name)
            if value is not None and own != value:
                raise PlanError(
                    f"the plan was measured on a model with {name}={own!r} and this one has "
                    f"{value!r}; tune a plan for this model, or pass the plan's stages alone"
                )


def is_plan_file(plan: object) -> bool:
    """Whether an argument for a plan names a file: a path, or a text that ends in .json."""
    return isinstance(plan, os.PathLike) or (isinstance(plan, str) and plan.endswith(".json"))


def write(path: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
    """Write the fields of a plan as a file, whole or not at all. Raises PlanError."""
    written: dict[str, Any] = {"vtfast_plan": VERSION, "name": plan["name"]}
    written |= {name: plan[name] for name in ("seed", *_LABELS) if plan[name] is not None}
    written["stages"] = [stage_record(stage) for stage in plan["stages"]]
    if plan["measured"] is not None:
        written["measured"] = asdict(plan["measured"])
    target = Path(path)
    if target.suffix != ".json":
        raise PlanError(f"{path}: a plan is a JSON file; pass a name that ends in .json")
    if target.is_dir():
        raise PlanError(f"{path} is a folder; pass the name of a file")
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        text = json.dumps(written, indent=2, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(target)
    except (ValueError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise PlanError(f"{target} cannot be written: {why}") from None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of a plan from its file. Raises PlanError, which names the file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise PlanError(
            f"plan {path} cannot be read: {error.strerror or error}; pass "
            "a file that Plan.save or vtfast tune wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan {path} is no JSON: {error}; pass what Plan.save wrote") from None
    try:
        return _fields(found)
    except PlanError as error:
        raise PlanError(f"plan {path}: {error}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _fields(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or "vtfast_plan" not in found:
        raise PlanError("it is no plan of vtfast; pass what Plan.save wrote")
    if found["vtfast_plan"] is True or found["vtfast_plan"] != VERSION:
        raise PlanError(
            f"it is of version {found['vtfast_plan']!r}, and this vtfast reads {VERSION}; install "
            "the vtfast that wrote it, or a newer one"
        )
    if unknown := sorted(found.keys() - _KNOWN):
        raise PlanError(f"unknown entries {', '.join(unknown)}; known: {', '.join(sorted(_KNOWN))}")
    stages, measured = found.get("stages"), found.get("measured")
    if not isinstance(stages, list):
        raise PlanError(f"stages={stages!r}: expected a list of stages")
    for name, kind in _LABELS.items():
        if (value := found.get(name)) is not None and type(value) is not kind:
            raise PlanError(f"{name}={value!r}: expected {kind.__name__}")
    return {
        "name": found.get("name", "custom"),
        "stages": [stage_of(stage) for stage in stages],
        "seed": found.get("seed"),
        "measured": None if measured is None else _measured_of(measured),
        **{name: found.get(name) for name in _LABELS},
    }


def check_seed(seed: object) -> int | None:
    """The seed of a plan, or None. Raises PlanError for anything but an int that fits 64 bits."""
    if seed is None:
        return None
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not -(2**63) <= int(seed) < 2**63:  # type: ignore[call-overload]
        raise PlanError(f"seed={seed!r}: expected an int that fits 64 bits")
    return int(seed)  # type: ignore[call-overload]


def stage_record(stage: Prune) -> dict[str, Any]:
    """A stage as a file holds it. Raises PlanError for options that JSON cannot hold."""
    for name, value in stage.chosen.items():
        if not isinstance(value, bool | int | float | str | None):
            raise PlanError(
                f"{stage!r} cannot be saved: option {name} is a {type(value).__name__}; a file "
                "holds numbers, texts, True and False"
            )
    return {
        "layer": stage.layer,
        "method": stage.method,
        "keep": stage.keep,
        "options": stage.chosen,
    }


def stage_of(record: Any) -> Prune:
    """The stage that `stage_record` wrote. Raises PlanError for anything else."""
    known = {"layer", "method", "keep", "options"}
    if not isinstance(record, dict) or not known - {"options"} <= record.keys() <= known:
        raise PlanError(f"stage {record!r}: expected layer, method, keep and options")
    options = record.get("options", {})
    if not isinstance(options, dict) or options.keys() & {*known, "self"}:
        raise PlanError(f"options={options!r}: expected an object of a method's options")
    return Prune(record["layer"], record["method"], record["keep"], **options)


def _measured_of(record: Any) -> Measured:
    kinds = {field.name: field.type for field in fields(Measured)}
    if not isinstance(record, dict) or record.keys() != kinds.keys():
        raise PlanError(f"measured={record!r}: expected {', '.join(kinds)}")
    for name, kind in kinds.items():
        value = record[name]
        good = isinstance(value, (int, float) if kind is float else kind)  # type: ignore[arg-type]
        if not good or isinstance(value, bool):
            raise PlanError(f"{name}={value!r} in measured: expected {kind.__name__}")  # type: ignore[union-attr]
    if record["samples"] < 1 or not 0.5 < record["confidence"] < 1:
        raise PlanError(f"measured={record!r}: expected samples >= 1, confidence in (0.5, 1)")
    return Measured(**record)
