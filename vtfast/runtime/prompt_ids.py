"""Lets a forward see the ids of a prompt that `generate` was given as ids and embeddings.

`generate(input_ids, inputs_embeds=…)` runs the prompt by its embeddings, into which the caller has
merged the pictures' features, and keeps the ids to itself. Only the ids tell where pictures are.
"""

from inspect import Signature, signature
from typing import Any

from vtfast.runtime.call import PROMPT_IDS

_METHOD = "prepare_inputs_for_generation"


class PreparedInputs:
    """Stands in for a model's `prepare_inputs_for_generation`, on this instance alone."""

    def __init__(self, model: Any) -> None:
        self.model, self.before = model, vars(model).get(_METHOD)

    @property
    def _original(self) -> Any:
        return self.before or getattr(type(self.model), _METHOD).__get__(self.model)

    @property
    def __signature__(self) -> Signature:
        return signature(self._original)

    def __call__(self, input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """transformers' arguments of the next forward, and the prompt's ids beside embeddings."""
        prepared = self._original(input_ids, *args, **kwargs)
        embeds = prepared.get("inputs_embeds")
        if embeds is not None and input_ids.shape == embeds.shape[:2]:
            prepared[PROMPT_IDS] = input_ids
        return prepared

    def install(self) -> None:
        """Stand in."""
        if hasattr(type(self.model), _METHOD):
            setattr(self.model, _METHOD, self)

    def remove(self) -> None:
        """Put back what was there, unless someone else has replaced this since."""
        if vars(self.model).get(_METHOD) is self:
            delattr(self.model, _METHOD)
            if self.before is not None:
                setattr(self.model, _METHOD, self.before)
