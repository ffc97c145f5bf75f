"""The classes behind `vtfast.evaluation.lmms`, made when asked for; that needs lmms-eval.

`LlavaHf` is lmms-eval's class of that name, pruned, and `LlavaHfChat` its class that takes chat
messages; so are those of every model in `lmms.MODELS`.
"""

from importlib import import_module
from typing import Any

from vtfast.evaluation.compare import named_plan
from vtfast.evaluation.lmms import MODELS
from vtfast.inputs.distributed import this_process
from vtfast.patching import patch
from vtfast.plan import Plan
from vtfast.plan_file import is_plan_file
from vtfast.presets import check_name


class _Pruned:
    """A mixin that patches the model with the arguments in `--model_args`; others go to lmms-eval.

    plan: a preset, a plan file (`plan.json`), or a released setting such as
    paper:divprune+random:192. keep, horizon, seed, positions: as in `vtfast.patch`.
    """

    def __init__(
        self,
        *args: Any,
        plan: str = "divprune+random",
        keep: float | None = None,
        horizon: int | None = None,
        seed: int | None = None,
        positions: str = "keep",
        **kwargs: Any,
    ) -> None:
        asked = Plan.load(plan) if is_plan_file(plan) else named_plan(plan)
        if isinstance(asked, str):
            check_name(asked)  # before the weights are read
        super().__init__(*args, **kwargs)
        given = {"keep": None if keep is None else float(keep), "horizon": horizon}
        given = {name: value for name, value in given.items() if value is not None}
        how: dict[str, Any] = {"positions": positions, **given}
        how["seed"] = None if seed is None else int(seed)
        self.vtfast = patch(self.model, asked, **how)  # type: ignore[attr-defined]


class _OnOneDevice(_Pruned):
    """Puts lmms-eval's LLaVA classes on one device.

    These pass `device_map=""`, which transformers 5 refuses. With several processes the empty value
    stays, because it makes these classes use one device per process.
    """

    def __init__(
        self, *args: Any, device: str = "cuda", device_map: str = "", **kwargs: Any
    ) -> None:
        if this_process().size == 1:
            device_map = device_map or device
        super().__init__(*args, device=device, device_map=device_map, **kwargs)


_MIXINS = {"llava_hf": _OnOneDevice}
_OURS = {one.ours(kind): (name, kind) for name, one in MODELS.items() for kind in one.kinds}


def __getattr__(name: str) -> Any:
    if name not in _OURS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    model, kind = _OURS[name]
    theirs = getattr(import_module(f"lmms_eval.models.{kind}.{model}"), MODELS[model].cls)
    told = {"__module__": __name__, "__doc__": f"lmms-eval's `{model}` ({kind}), pruned."}
    made = globals()[name] = type(name, (_MIXINS.get(model, _Pruned), theirs), told)
    return made
