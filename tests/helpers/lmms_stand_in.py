"""Stand-ins for the model classes of lmms-eval (0.7.3), for where it is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from tiny_models import FAMILIES

from vtfast.evaluation.lmms import MODELS

HOME = "vtfast.evaluation.lmms_models"
FAMILY_OF = {
    "llava_hf": "llava",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen",
    "qwen3_vl": "qwen3",
    "qwen3_5": "qwen3.5",
    "glm4v": "glm4v",
    "internvl_hf": "internvl",
}


class StandIn:
    """Takes the arguments that lmms-eval's model classes know, and refuses others as they do."""

    family = "llava"
    text: Any = None

    def __init__(
        self,
        pretrained: str = "hub/id",
        device: str = "cuda",
        device_map: str = "",
        batch_size: int = 1,
        **kwargs: object,
    ) -> None:
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        self.pretrained, self.device_map = pretrained, device_map
        options = {} if self.text is None else {"text_config": self.text}
        self._model = FAMILIES[self.family].build(**options)

    @property
    def model(self):
        return self._model


@contextmanager
def stand_ins(text_config: Any = None) -> Iterator[ModuleType]:
    """Import `vtfast.evaluation.lmms_models` with stand-ins for the classes it derives from.

    text_config: the text model of the LLaVAs, if not the usual one.
    """
    with pytest.MonkeyPatch.context() as patching:
        for package in ("", ".models", ".models.simple", ".models.chat"):
            patching.setitem(sys.modules, f"lmms_eval{package}", ModuleType("lmms_eval"))
        for model, theirs in MODELS.items():
            text = text_config if model == "llava_hf" else None
            for kind in theirs.kinds:
                told = {"family": FAMILY_OF[model], "text": text}
                told |= {"is_simple": False} if kind == "chat" else {}
                module = ModuleType(f"lmms_eval.models.{kind}.{model}")
                setattr(module, theirs.cls, type(theirs.cls, (StandIn,), told))
                patching.setitem(sys.modules, module.__name__, module)
        patching.delitem(sys.modules, HOME, raising=False)
        yield import_module(HOME)
        sys.modules.pop(HOME, None)
