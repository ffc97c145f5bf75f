"""What the families share: where a model's parts are, and how its layers compute attention scores.

All have Llama's decoder layer: `input_layernorm`, then `self_attn` with `q_proj` and `k_proj`
(biases included), in some normed head by head, rotary phases on a head or its first part, logits
scaled by `self_attn.scaling`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from vtfast.errors import PlanError, UnsupportedModelError
from vtfast.methods import Attention
from vtfast.models.generic import PictureReader
from vtfast.models.own_code import shares_attention
from vtfast.models.parallel import gather_weights, processes_with_heads, unwrapped
from vtfast.runtime.model import Parts

TINY_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24}
TESTED_TEXT_MODELS = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text"),
    *("qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "glm4v_text"),
    "aria_text",
)


class Family(PictureReader):
    """What vtfast has to know about a family of models; a subclass is one file.

    Attributes:
        default_horizon: the horizon as a share of the layers, where none was measured.
        text: name of the language model in the multimodal model.
        recurrent: kinds of layers that keep a state of one size in place of keys and values.
        around_picture: tokens that stand before a picture in a tiny model's prompt, and the one
            that stands behind it.
        position_axes: shape that the rotary module's positions have before [B, S].
    """

    default_horizon: float
    text = "language_model"
    position_axes: tuple[int, ...] = ()
    recurrent: tuple[str, ...] = ()
    around_picture: tuple[int, ...] = ()

    @abstractmethod
    def tiny(self, config: Any) -> PreTrainedConfig:
        """A small config of the same types, for the self-check: 4 layers, 96 token ids, of which
        90 is the picture's."""

    @abstractmethod
    def tiny_pictures(self, count: int) -> tuple[list[int], dict[str, Tensor]]:
        """Visual tokens of up to three pictures for such a model, and the arguments that bring
        them."""

    def parts(self, model: Any) -> Parts:
        """The modules that get hooks."""
        inner = unwrapped(model.model)
        text = unwrapped(getattr(inner, self.text))
        layers = tuple(map(unwrapped, text.layers))
        attends = next_of_kind("full_attention", text.config)
        head_size = getattr(layers[attends[0]].self_attn, "head_dim", 0)
        around = layers, text.rotary_emb, text.norm, attends, self.added(model.config)
        shares = shares_attention(text.config, layers)
        return Parts(self, model, inner, text, *around, shares, head_size)

    def added(self, config: Any) -> int:
        """Number of layers behind which the model adds features to its visual tokens."""
        return 0

    def check(self, model: Any) -> None:
        """Raise UnsupportedModelError unless every layer sees the whole sequence."""
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None)
        known = "full_attention" in kinds and kinds <= {"full_attention", *self.recurrent}
        if not known or window is not None:
            where = "some layers and linear in the others" if self.recurrent else "every layer"
            raise UnsupportedModelError(
                f"the language model ({config.model_type}) has layers that see a part of the "
                f"sequence (layer types {sorted(kinds)}, sliding_window={window}); "
                f"vtfast prunes models with full attention in {where}"
            )
        text = getattr(model.model, self.text)
        if self.added(model.config) >= len(unwrapped(text).layers):
            raise UnsupportedModelError(
                "the model adds features behind all of its decoder layers; vtfast prunes those "
                "where the last layer is behind all that is added"
            )
        check_one_device(text)

    def check_scores(self, model: Any, layers: Sequence[int]) -> None:
        """Raise UnsupportedModelError where `attention` would be wrong, PlanError where one of
        these layers has no attention scores."""
        config = model.config.get_text_config()
        attends, kind = next_of_kind("full_attention", config), config.model_type
        if layers and kind not in TESTED_TEXT_MODELS:
            raise UnsupportedModelError(
                f"attention scores of a language model of type {kind!r} are not supported; "
                "use a method that needs none (diversity, random), or one of "
                f"{', '.join(TESTED_TEXT_MODELS)}"
            )
        for layer in layers:
            if attends[layer] != layer:
                raise PlanError(
                    f"layer {layer} is recurrent, so it has no attention scores; those with scores "
                    f"are {', '.join(map(str, sorted(set(attends))))}. The layer before a stage "
                    'scores for it, or with score_layer="this" its own'
                )

    def attention(
        self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, last: Tensor
    ) -> Attention:
        """Queries of the tokens `last` and the keys of all, as a decoder layer makes them.

        hidden: [tokens, D] packed input of the layer; cos, sin: [tokens, D], for the rotated part.
        They are computed anew, so every attention implementation works. To be called while the
        layer is about to run, when FSDP has gathered its weights.

        Raises UnsupportedModelError where weights or heads are split in a way vtfast cannot join.
        """
        attention = layer.self_attn
        size, turned = attention.head_dim, cos.shape[-1]
        gather_weights(attention)
        normed = layer.input_layernorm(hidden)

        def rotate(x: Tensor, tokens: Tensor | slice, norm: Any) -> Tensor:
            x = x.view(x.shape[0], -1, size)
            x = x if norm is None else norm(x)
            part, rest = x[..., :turned], x[..., turned:]
            part = part * cos[tokens, None] + self.turn(part) * sin[tokens, None]
            return part if turned == size else torch.cat((part, rest), dim=-1)

        query = self.queries(attention.q_proj(normed[last]), size)
        keys = attention.k_proj(normed)
        group = processes_with_heads(attention, query, keys)
        of_query, of_keys = (getattr(attention, f"{x}_norm", None) for x in "qk")
        query, keys = rotate(query, last, of_query), rotate(keys, slice(None), of_keys)
        return Attention(query, keys, attention.scaling, group)

    def queries(self, projected: Tensor, head_size: int) -> Tensor:
        """[tokens, heads * head size] in what a layer's `q_proj` makes: all of it."""
        return projected

    def turn(self, x: Tensor) -> Tensor:
        """What sines multiply: the dimensions of heads [..., D] with their partners' values."""
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def tiny_text(config: Any, **more: Any) -> PreTrainedConfig:
    """A small config of the same type of text model, every layer of which sees all."""
    kind = config.get_text_config().model_type
    tiny: PreTrainedConfig = AutoConfig.for_model(kind, **TINY_TEXT, sliding_window=None, **more)
    return tiny


def next_of_kind(kind: str, config: Any) -> tuple[int, ...]:
    """For each layer the next one of this kind, which may be itself; behind the last, the first."""
    kinds = getattr(config, "layer_types", None) or [kind] * config.num_hidden_layers
    found = [i for i, k in enumerate(kinds) if k == kind]
    return tuple(next((f for f in found if f >= i), found[0]) for i in range(len(kinds)))


def check_one_device(text: nn.Module) -> None:
    """Raise UnsupportedModelError where layers are on several devices; offloading is allowed."""
    places = sorted({str(p.device) for p in text.parameters()} - {"meta"})
    if len(places) > 1:
        raise UnsupportedModelError(
            f"the language model is spread over several devices ({', '.join(places)}), which "
            "vtfast does not support; split every layer over the devices instead "
            '(tp_plan="auto", started by torchrun), or load the model on one device '
            '(device_map={"": 0}) and offload what does not fit'
        )
