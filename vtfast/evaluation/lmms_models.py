"""The classes behind `vtfast.evaluation.lmms`; importing this needs lmms-eval."""

from typing import Any

from lmms_eval.models.chat.llava_hf import LlavaHf as _LlavaChat
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as _QwenChat
from lmms_eval.models.simple.llava_hf import LlavaHf as _Llava
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as _Qwen

from vtfast.distributed import this_process
from vtfast.evaluation.compare import named_plan
from vtfast.patching import patch
from vtfast.presets import check_name


class _Pruned:
    """A mixin that patches the model with the arguments in `--model_args`; others go to lmms-eval.

    plan: a preset, or a released setting such as paper:divprune+random:192. keep, horizon, seed,
    positions: as in `vtfast.patch`.
    """

    def __init__(
        self,
        *args: Any,
        plan: str = "divprune+random",
        keep: float | None = None,
        horizon: int | None = None,
        seed: int = 0,
        positions: str = "keep",
        **kwargs: Any,
    ) -> None:
        asked = named_plan(plan)
        if isinstance(asked, str):
            check_name(asked)  # before the weights are read
        super().__init__(*args, **kwargs)
        given = {"keep": None if keep is None else float(keep), "horizon": horizon}
        given = {name: value for name, value in given.items() if value is not None}
        how: dict[str, Any] = {"seed": int(seed), "positions": positions, **given}
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


class LlavaHf(_OnOneDevice, _Llava):
    """lmms-eval's `llava_hf`, pruned."""


class LlavaHfChat(_OnOneDevice, _LlavaChat):
    """lmms-eval's `llava_hf` with chat messages, pruned."""


class Qwen25VL(_Pruned, _Qwen):
    """lmms-eval's `qwen2_5_vl`, pruned."""


class Qwen25VLChat(_Pruned, _QwenChat):
    """lmms-eval's `qwen2_5_vl` with chat messages, pruned."""
