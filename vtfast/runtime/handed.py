"""What transformers has to hand to the layers of one forward, checked while they run.

A release that hands on less, or something else, would otherwise go on with a wrong answer.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vtfast.errors import InputError, UnsupportedVersionError
from vtfast.runtime import names


class Handed:
    """The checks of one forward.

    Attributes:
        rotary: the list of rotary rows that packed stages rewrite; None before the first of them.
        stages: layers with a stage that were entered.
        attended: calls of our attention function that found packed tokens.
    """

    def __init__(self, is_packed: bool) -> None:
        self.is_packed = is_packed
        self.rotary: list[Tensor] | None = None
        self.stages: list[int] = []
        self.attended = 0
        self._to_attend = 0

    def check(
        self, layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any], samples: int, length: int
    ) -> None:
        """The layer must get hidden states [samples, length, D] and as many rotary rows."""
        rotary = names.rotary_of_layer(kwargs, layer)
        if self.is_packed and not isinstance(rotary, list):
            raise _not_one_list(layer)
        if hidden.shape[:2] != (samples, length) or rotary[0].shape[1] != length:
            raise InputError(
                f"{type(layer).__name__} got {tuple(hidden.shape[:2])} hidden states and "
                f"rotary rows of {rotary[0].shape[1]}, expected {(samples, length)}; pass the "
                "position_ids of just the tokens in this call, or none"
            )

    def check_rotary(self, layer: nn.Module, kwargs: dict[str, Any]) -> None:
        """The layer must hold the one list that packed stages rewrite. Only compares objects: with
        packed tokens this runs in every layer of every decoding step."""
        if self.rotary is not None and kwargs.get("position_embeddings") is not self.rotary:
            raise _not_one_list(layer)

    def expect_attention(self, layer: nn.Module) -> None:
        """The layer's attention must find packed tokens, unless it is not transformers' own: a user
        may have replaced it by a no-op."""
        attends = getattr(layer, "self_attn", None)
        self._to_attend += type(attends).__module__.startswith("transformers.")

    def check_all(self, text: nn.Module, stages: Iterable[int]) -> None:
        """At the end: every stage's layer was entered, and attention found the packed tokens."""
        model = type(text).__name__
        if self.stages != list(stages):
            raise names.unsupported(f"{model} does not pass keywords on to its layers")
        if self.attended < self._to_attend:
            raise names.unsupported(
                f"the layers of {model} do not pass keywords on to attention, which packed tokens "
                'need (path="padded" does not)'
            )


def _not_one_list(layer: nn.Module) -> UnsupportedVersionError:
    return names.unsupported(
        f"{type(layer).__name__} is not handed the one list of rotary rows that all layers share"
    )
