"""What stands in for OpenAI's client where a page shows a request to vLLM."""

from typing import Any

from vtfast.vllm.settings import KEEP, as_keep


class Client:
    """Takes `client.chat.completions.create(...)`; `keeps` are the budgets that were asked for, and
    what it answers has the numbers of the page's server, which test_vllm_server.py asks."""

    def __init__(self) -> None:
        self.keeps: list[float | int] = []
        self.chat = self.completions = self

    def create(self, *, model: str, messages: list[Any], extra_body: dict[str, Any]) -> None:
        ((name, arguments),) = extra_body.items()
        ((option, keep),) = arguments.items()
        if (name, option) != ("mm_processor_kwargs", KEEP):
            raise TypeError(f"vLLM takes no {name}={arguments!r}")
        self.keeps.append(as_keep(keep))
