"""Stands in for a method of a model, to see what no module hook does."""

from collections.abc import Callable
from functools import partial
from inspect import Signature, signature
from typing import Any

from vtfast.runtime.call import PROMPT_IDS


class StandIn:
    """Stands in for a method of one model, on this instance alone.

    `call` gets the method and the arguments it is called with.
    """

    def __init__(self, model: Any, name: str, call: Callable[..., Any]) -> None:
        self.model, self.name, self.call = model, name, call
        self.before = {k: v for k, v in vars(model).items() if k == name}

    @property
    def original(self) -> Any:
        """The method."""
        # Not a bound method: torch.compile would look that up again by its name.
        return self.before.get(self.name) or partial(
            getattr(type(self.model), self.name), self.model
        )

    @property
    def __signature__(self) -> Signature:
        return signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.original, *args, **kwargs)

    def install(self) -> None:
        """Stand in."""
        if hasattr(type(self.model), self.name):
            setattr(self.model, self.name, self)

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced this since."""
        if vars(self.model).get(self.name) is self:
            delattr(self.model, self.name)
            vars(self.model).update(self.before)


def prepare_with_ids(original: Any, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """transformers' arguments of the next forward, and the prompt's ids beside embeddings.

    `generate(input_ids, inputs_embeds=…)` runs the prompt by its embeddings, into which the caller
    has merged the pictures' features, and keeps the ids to itself. Only they tell where pictures
    are.
    """
    prepared: dict[str, Any] = original(input_ids, *args, **kwargs)
    embeds = prepared.get("inputs_embeds")
    if embeds is not None and 0 < embeds.shape[1] <= input_ids.shape[1]:
        prepared[PROMPT_IDS] = input_ids[:, -embeds.shape[1] :]  # of a later turn its own
    return prepared
