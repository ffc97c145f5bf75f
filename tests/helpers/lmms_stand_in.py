"""Stand-ins for the model classes of lmms-eval (0.7.3), for where it is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from tiny_models import FAMILIES

HOME = "vtfast.evaluation.lmms_models"


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
    llava = type("LlavaHf", (StandIn,), {"text": text_config})
    llava_chat = type("LlavaHf", (llava,), {"is_simple": False})
    qwen = type("Qwen2_5_VL", (StandIn,), {"family": "qwen"})
    chat = type("Qwen2_5_VL", (qwen,), {"is_simple": False})
    names = {"simple.llava_hf": llava, "simple.qwen2_5_vl": qwen}
    names |= {"chat.llava_hf": llava_chat, "chat.qwen2_5_vl": chat}
    with pytest.MonkeyPatch.context() as patching:
        for package in ("", ".models", ".models.simple", ".models.chat"):
            patching.setitem(sys.modules, f"lmms_eval{package}", ModuleType("lmms_eval"))
        for name, cls in names.items():
            module = ModuleType(f"lmms_eval.models.{name}")
            setattr(module, cls.__name__, cls)
            patching.setitem(sys.modules, module.__name__, module)
        patching.delitem(sys.modules, HOME, raising=False)
        yield import_module(HOME)
        sys.modules.pop(HOME, None)
