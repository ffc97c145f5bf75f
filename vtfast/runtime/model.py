"""What the runtime knows of a model: its parts by name, and the questions only its family answers.

`vtfast.models` fills this in; nothing here depends on a class of transformers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtfast.methods import Attention
from vtfast.runtime.visual_tokens import Source

Arguments: TypeAlias = Mapping[str, Any]
Needs: TypeAlias = Collection[str]  # as `Method.needs`


class Family(Protocol):
    """What a model family answers; `vtfast.models.base.Family` says it in full.

    The models of transformers differ in class, so those handed over here are `Any`.
    """

    kinds: Mapping[str, Any]
    position_axes: tuple[int, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Arguments of the multimodal model that `sources` reads."""

    def sources(self, multimodal: Any, call: Arguments, needs: Needs) -> list[Source]:
        """The features a call of the multimodal model brings; empty in decoding."""

    def encode(self, multimodal: Any, kind: str, call: Arguments, make: Any, needs: Needs) -> Any:
        """The features that `make` makes of pictures, and on them what they were made from."""

    def watch_tower(self, multimodal: Any) -> list[RemovableHandle]:
        """See from now on what vision scores are made from, while pictures are encoded."""

    def attention(
        self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, last: Tensor
    ) -> Attention:
        """Queries of the tokens `last` and keys of all, as a decoder layer makes them."""


@dataclass(frozen=True)
class Parts:
    """The modules of one model that get hooks."""

    family: Family
    model: nn.Module  # with the language-model head: takes labels
    multimodal: nn.Module  # takes ids and pixels
    text: Any  # embeddings to hidden states, a PreTrainedModel
    layers: Sequence[nn.Module]
    rotary: nn.Module
    norm: nn.Module  # of the last hidden states
    attends: Sequence[int]  # for each layer the next that attends; itself, if it is not recurrent
    added: int  # layers behind which features of the visual tokens are added (DeepStack)
    shares_attention: bool  # layers call the attention function that the config names
    head_size: int  # 0 where queries, keys and values differ in it, as in latent attention
