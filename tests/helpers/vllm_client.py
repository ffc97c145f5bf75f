"""What stands in for OpenAI's client where a page shows a request to vLLM."""

from types import SimpleNamespace
from typing import Any

from vtfast.vllm.settings import KEEP, as_keep

# Of the page's picture in the bundled Qwen2.5-VL, by `keep`; asked of vLLM in test_vllm_server.py.
PROMPT_TOKENS = {1.0: 76, 0.5: 44, 0.25: 28}


class Client:
    """Takes `client.chat.completions.create(...)`; `keeps` are the budgets that were asked for, and
    what it answers has the numbers of the page's server, which test_vllm_server.py asks."""

    def __init__(self) -> None:
        self.keeps: list[float | int] = []
        self.chat = self.completions = self

    def create(self, *, model: str, messages: list[Any], extra_body: dict[str, Any]) -> Any:
        ((name, arguments),) = extra_body.items()
        ((option, keep),) = arguments.items()
        if (name, option) != ("mm_processor_kwargs", KEEP):
            raise TypeError(f"vLLM takes no {name}={arguments!r}")
        self.keeps.append(as_keep(keep))
        tokens = PROMPT_TOKENS.get(keep, 0)
        return SimpleNamespace(usage=SimpleNamespace(prompt_tokens=tokens))
