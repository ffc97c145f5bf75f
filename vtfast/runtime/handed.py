"""What transformers has to hand to the layers of one forward, checked while they run.

A release that hands on less, or something else, would otherwise go on with a wrong answer.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vtfast.errors import InputError
from vtfast.runtime import names


class RotaryRows(list[Tensor]):
    """cos and sin, in the one list that all layers hold. A release that copied them for each layer
    would make lists or tuples of them."""


class Handed:
    """The checks of one prefill; a decoding step repeats none of them.

    Attributes:
        stages: layers with a stage that were entered.
        attended: calls of our attention function that found what a stage has made for it.
    """

    def __init__(self, shares: bool) -> None:
        self.shares = shares  # layers hold one list of rotary rows, and use our attention function
        self.stages: list[int] = []
        self.attended = 0
        self._to_attend = 0

    def check(
        self, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any], samples: int, length: int
    ) -> None:
        """The layer must get hidden states [samples, length, D] and as many rotary rows."""
        rotary = kwargs.get("position_embeddings")
        if rotary is None:
            raise names.unsupported("is handed no argument 'position_embeddings'", layer)
        if self.shares and not isinstance(rotary, RotaryRows):
            problem = "is not handed the one list of rotary rows that all layers share"
            raise names.unsupported(problem, layer)
        if hidden.shape[:2] != (samples, length) or rotary[0].shape[1] != length:
            raise InputError(
                f"{type(layer).__name__} got {tuple(hidden.shape[:2])} hidden states and "
                f"rotary rows of {rotary[0].shape[1]}, expected {(samples, length)}; pass the "
                "position_ids of just the tokens in this call, or none"
            )

    def expect_attention(self, layers: Iterable[nn.Module]) -> None:
        """The attention of these layers must find what the stage has made for it, unless it is not
        transformers' own: a user may have replaced it by a no-op."""
        for layer in layers:
            attends = getattr(layer, "self_attn", None)
            self._to_attend += type(attends).__module__.startswith("transformers.")

    def check_all(self, text: nn.Module, stages: Iterable[int]) -> None:
        """At the end: every stage's layer was entered, and attention found what it needs."""
        if self.stages != list(stages):
            raise names.unsupported("does not pass keywords on to its layers", text)
        if self.attended < self._to_attend:
            problem = "has layers that do not pass keywords on to attention, which pruning needs"
            raise names.unsupported(problem, text)
