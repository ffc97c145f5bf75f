"""What the families share: where a model's parts are, and how its layers compute attention scores.

All have Llama's decoder layer: `input_layernorm`, then `self_attn` with `q_proj` and `k_proj`
(biases included), in some normed head by head, rotary phases on a head or its first part, logits
scaled by `self_attn.scaling`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from vtfast.errors import InputError, PlanError, UnsupportedModelError
from vtfast.kernels.image_hash import image_hash
from vtfast.methods import Attention
from vtfast.models.own_code import shares_attention
from vtfast.models.parallel import gather_weights, processes_with_heads, unwrapped
from vtfast.runtime.call import PROMPT_IDS, Source
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
    *("llama", "mistral", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text"),
    *("qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "glm4v_text"),
)


class Family(ABC):
    """What vtfast has to know about a family of models; a subclass is one file.

    Attributes:
        default_horizon: the horizon as a share of the layers, where none was measured.
        tower: name of the vision tower in the multimodal model.
        inputs: arguments of the multimodal model that `sources` reads.
        recurrent: kinds of layers that keep a state of one size in place of keys and values.
        around_picture: tokens that stand before and after a picture in a tiny model's prompt.
        position_axes: shape that the rotary module's positions have before [B, S].
    """

    default_horizon: float
    tower: str
    inputs: tuple[str, ...]
    position_axes: tuple[int, ...] = ()
    recurrent: tuple[str, ...] = ()
    around_picture: tuple[int, ...] = ()

    @abstractmethod
    def sources(self, multimodal: Any, kwargs: Mapping[str, Any]) -> list[Source]:
        """The features a call of the multimodal model brings; empty in decoding.

        `kwargs` holds `input_ids` too.
        """

    @abstractmethod
    def note(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, hashed: bool
    ) -> None:
        """Attach what is known of the pictures to a tower's output (if `hashed`, their image hashes
        too), because `generate` encodes pictures before the forward."""

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
        text, tower = unwrapped(inner.language_model), getattr(inner, self.tower)
        layers = tuple(map(unwrapped, text.layers))
        attends = next_of_kind("full_attention", text.config)
        head_size = getattr(layers[attends[0]].self_attn, "head_dim", 0)
        around = layers, text.rotary_emb, text.norm, attends, self.added(model.config)
        shares = shares_attention(text.config, layers)
        return Parts(self, model, inner, tower, text, *around, shares, head_size)

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
        if self.added(model.config) >= len(unwrapped(model.model.language_model).layers):
            raise UnsupportedModelError(
                "the model adds features behind all of its decoder layers; vtfast prunes those "
                "where the last layer is behind all that is added"
            )
        check_one_device(model.model.language_model)

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


class LazyImageHash:
    """The op `image_hash`, which runs at the first call; that call then releases the pixels."""

    def __init__(self, pixels: Tensor, grid: Tensor | None = None) -> None:
        self._seen: tuple[Tensor, Tensor | None] | None = (pixels, grid)

    def regroup(self, grid: Tensor) -> None:
        """Take the same pixels for pictures of these grids."""
        if self._seen is not None:
            self._seen = self._seen[0], grid

    def __call__(self, impl: str) -> Tensor:
        """int64 [images]. impl: which implementation of the op to run."""
        if self._seen is not None:
            pixels, grid = self._seen
            grid = None if grid is None else grid.to(pixels.device)
            self._hash, self._seen = image_hash(pixels, grid, impl=impl), None
        return self._hash


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
            'vtfast does not support; load it on one device (device_map={"": 0}), or offload what '
            "does not fit"
        )


def placeholders(multimodal: Any, kwargs: Mapping[str, Any], token: int) -> Tensor:
    """bool [B, S]: where features go, from ids or, without them, from embeddings."""
    ids = prompt_ids(kwargs)
    if ids is not None:
        return ids == token
    embeds = kwargs["inputs_embeds"]
    table = multimodal.get_input_embeddings()
    wanted = table(torch.full((), token, dtype=torch.long, device=embeds.device))
    return (embeds == wanted).all(-1)


def prompt_ids(kwargs: Mapping[str, Any]) -> Tensor | None:
    """int64 [B, S]: the ids of a call, also of one that runs by its embeddings, where known."""
    ids = kwargs.get("input_ids")
    return kwargs.get(PROMPT_IDS) if ids is None else ids


def has_merged_features(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call brings embeddings that may hold the features of pictures already."""
    return kwargs.get("inputs_embeds") is not None and prompt_ids(kwargs) is not None


def encoded_by_tower(kwargs: Mapping[str, Any], kind: str) -> Any | None:
    """The tower's output for one kind of picture if `generate` has encoded them; else None."""
    encoded = (kwargs.get("mm_encoder_outputs") or {}).get(kind)
    if encoded is not None and getattr(encoded, "last_hidden_state", None) is None:
        raise InputError(
            "the features of the pictures came in chunks (prefill_chunk_size), which "
            "splits images; leave prefill_chunk_size unset while the model is patched"
        )
    return encoded


def noted(encoded: Any, name: str) -> Callable[..., Tensor] | None:
    """A function that reads what `note` attached to a tower's output, one entry per picture.

    It passes its arguments on to what was attached.

    For beams and return sequences transformers repeats the feature tensors, so the same object
    stands for the same picture, and the first occurrences are the pictures in order.
    """
    note = getattr(encoded, name, None)
    if note is None:
        return None

    def read(*arguments: str) -> Tensor:
        notes, first = note(*arguments), dict[int, int]()
        order = [first.setdefault(id(t), len(first)) for t in encoded.pooler_output]
        return torch.stack([notes[i] for i in order]) if len(first) < len(order) else notes

    return read
