"""Attention that visual tokens get inside the vision tower, for methods that score tokens by it.

One attention module of the tower is watched while pictures are encoded: its queries and keys are
computed again from its input, so every attention implementation works (and hooks on its projections
run once more). What patches get is computed when a method asks for it, in fp32, picture by picture.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtfast.errors import InputError, StateError, UnsupportedModelError
from vtfast.runtime.call import Pictures

_LAYER = "vision_feature_layer"
HOW = ("vision_feature_select_strategy", "vision_aspect_ratio")  # arguments of get_image_features
_COPY = re.compile(
    r"(^|\.)(original_module|modules_to_save\.\w+)(?=\.|$)"
)  # in names, where PEFT keeps two
_WITH_CLASS_TOKEN = ("clip_vision_model", "internvl_vision")
_MAX_BYTES = 2**26  # of logits at once; a few temporary tensors are as large


@dataclass(frozen=True)
class Attended:
    """Queries and keys of a tower's layer, after rotation, with H heads of size d.

    Attributes:
        query, keys: `[..., patches, H, d]`; of a tower with a class token the query of this alone.
        scale: factor on the logits before the softmax.
        seen: bool `[tiles, patches]`, which patches of a tile are seen; None: all.
    """

    query: Tensor
    keys: Tensor
    scale: float
    seen: Tensor | None = None

    def of_class_token(self) -> Tensor:
        """fp32 `[..., patches]`: attention from the class token, mean over heads."""
        # Sums of products, not a matrix product, which might round differently in another batch.
        logits = (self.query.float() * self.scale * self.keys.float()).sum(-1)
        return logits.softmax(-2).mean(-1)

    def of_tiles(self, class_token: bool, left_out: bool) -> Tensor:
        """fp32 `[tiles, patches]`, of a tower in which tiles do not see one another.

        class_token: whether it has one. left_out: whether the first patch is no visual token.
        """
        scores = self.of_class_token() if class_token else self.received()
        return scores.view(len(self.keys), -1)[:, int(left_out) :]

    def received(self, lengths: Sequence[int] | None = None) -> Tensor:
        """fp32 `[patches]`: attention from all patches of the same frame or tile, mean over them
        (those that pad a tile too, as in the tower's own maps) and over heads.

        lengths: patches of each frame, where `query` and `keys` are `[patches, H, d]`; without,
        dimension 0 counts tiles.
        """
        query, keys, seen = self.query, self.keys, self.seen
        if lengths is not None:
            query, keys = (x.flatten(0, -3).split(list(lengths)) for x in (query, keys))
            seen = None
        masks = [None] * len(keys) if seen is None else seen
        parts = zip(query, keys, masks, strict=True)
        return torch.cat([_received(q, k, self.scale, mask) for q, k, mask in parts])


def _received(query: Tensor, keys: Tensor, scale: float, seen: Tensor | None) -> Tensor:
    patches, heads, _ = query.shape
    query, keys = (query.float() * scale).transpose(0, 1), keys.float().permute(1, 2, 0)
    total = keys.new_zeros(patches)
    with torch.autocast(keys.device.type, enabled=False):
        for part in query.split(max(1, _MAX_BYTES // (4 * heads * patches)), dim=1):
            logits = part @ keys
            if seen is not None:
                logits = logits.masked_fill(~seen, -torch.inf)
            total += logits.softmax(-1).sum((0, 1))
    return torch.nan_to_num(total / (heads * patches), nan=0.0)  # of a tile in which none is seen


class VisionScores:
    """Makes the vision scores of the pictures of one kind in a call, when asked for the first time.

    kind: of the pictures. score: makes fp32 `[visual tokens]` from what the tower's layer attended
    with and what the pictures are.
    """

    def __init__(self, kind: str, score: Callable[[Attended, Pictures], Tensor]) -> None:
        self.kind = kind
        self.attended: Attended | None = None  # once the pictures have been encoded
        self._score = score
        self._made: Tensor | None = None

    def __call__(self, pictures: Pictures) -> Tensor:
        """fp32 `[visual tokens]`, picture after picture. Releases what it is made from."""
        if self._made is None:
            if self.attended is None:
                raise StateError(
                    "the attention module of the vision tower that vtfast watches did not run once "
                    "while these pictures were encoded, so there are no vision scores; patch again "
                    "if the tower was changed, or use a method that needs none (diversity)"
                )
            self._made, self.attended = self._score(self.attended, pictures), None
        return self._made


_seen: ContextVar[list[Attended] | None] = ContextVar("vtfast_seen", default=None)
# Weakly: a forward that fails before its pictures are encoded leaves nothing alive.
_waiting: ContextVar[tuple[ReferenceType[VisionScores], ...]] = ContextVar(
    "vtfast_waiting", default=()
)


def expect(scores: Sequence[VisionScores]) -> None:
    """Have the pictures that this forward will encode fill these."""
    _waiting.set(tuple(map(ref, scores)))


def expected(kind: str) -> VisionScores | None:
    """Those that this forward expects of pictures of this kind, if it has not encoded them yet."""
    waiting = [scores for waits in _waiting.get() if (scores := waits()) and scores.kind == kind]
    return waiting[0] if waiting else None


def is_encoding() -> bool:
    """Whether pictures are being encoded."""
    return _seen.get() is not None


@contextmanager
def encoding(scores: VisionScores) -> Iterator[None]:
    """Fill `scores` from what is encoded here; they are not expected any more then."""
    seen: list[Attended] = []
    token = _seen.set(seen)
    try:
        yield
    finally:
        _seen.reset(token)
        _waiting.set(tuple(waits for waits in _waiting.get() if waits() is not scores))
    scores.attended = seen[0] if len(seen) == 1 else None


def watch(attention: nn.Module, class_token: bool) -> RemovableHandle:
    """Note what an attention module of a tower attends with, whenever pictures are encoded."""
    hook = partial(_look, class_token)
    return attention.register_forward_pre_hook(hook, with_kwargs=True)


def has_class_token(multimodal: Any) -> bool:
    """Whether the first patch of each tile is none, but a token that stands for the tile."""
    return bool(multimodal.config.vision_config.model_type in _WITH_CLASS_TOKEN)


def attention_of_features(multimodal: Any) -> list[nn.Module]:
    """The attention module of the layer whose output `vision_feature_layer` takes for features, of
    several layers the last, and its copies. Raises UnsupportedModelError if that is no layer's
    output."""
    tower = getattr(multimodal, "vision_tower", None) or multimodal.vision_model
    found: dict[str, list[nn.Module]] = {}
    for name, module in tower.named_modules():
        if hasattr(module, "k_proj") and not hasattr(module, "original_module"):
            found.setdefault(_COPY.sub("", name), []).append(module)
    chosen = getattr(multimodal.config, "vision_feature_layer", -1)
    chosen = [chosen] if isinstance(chosen, int) else chosen
    layer = max(n if n >= 0 else n + len(found) + 1 for n in chosen) - 1  # 0: the embeddings
    if not 0 <= layer < len(found):
        raise UnsupportedModelError(
            f"vision_feature_layer={chosen}: the features are no output of the vision tower's "
            f"{len(found)} layers, so there are no vision scores; use a method that needs none "
            "(diversity, cdpruner)"
        )
    return list(found.values())[layer]


def copies_of(attention: nn.Module) -> list[nn.Module]:
    """The module itself, or those of which PEFT's `modules_to_save` runs one in its place."""
    kept: Any = attention
    if not hasattr(kept, "original_module"):
        return [attention]
    return [kept.original_module, *kept.modules_to_save.values()]


def check_layer(multimodal: Any, call: Mapping[str, Any]) -> None:
    """Refuse a call whose features are those of another layer than the one that is watched."""
    given, layer = call.get(_LAYER), getattr(multimodal.config, _LAYER, None)
    if given is not None and given != layer:
        raise InputError(
            f"{_LAYER}={given} was given in the call, and vision scores are those of the config's "
            f"{layer}; leave it out, or set it in the config before the model is patched"
        )


def _look(class_token: bool, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen = _seen.get()
    if seen is None:
        return
    hidden = args[0] if args else kwargs["hidden_states"]
    # Dropout in a projection (of LoRA, say) must leave the layer's random numbers alone.
    devices = [hidden.device] if hidden.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices, enabled=module.training):
        seen.append(_attended(module, hidden, class_token, kwargs))


def _attended(attention: Any, hidden: Tensor, class_token: bool, given: dict[str, Any]) -> Attended:
    """Queries and keys as transformers' towers make them: of one projection or two, normed before
    heads are told apart, rotated where there are phases."""
    if hasattr(attention, "qkv"):
        query, keys = attention.qkv(hidden).chunk(3, dim=-1)[:2]
    else:
        query = attention.q_proj(hidden[:, :1] if class_token else hidden)
        keys = attention.k_proj(hidden)
        if hasattr(attention, "q_norm"):
            query, keys = attention.q_norm(query), attention.k_norm(keys)
    size, heads = attention.head_dim, attention.num_heads
    if keys.shape[-1] != heads * size:
        raise UnsupportedModelError(
            f"vision scores need all {heads} heads of the vision tower, and this process has "
            f"{keys.shape[-1] / size:g}; load the tower whole, or use a method that needs no "
            "vision scores (diversity, cdpruner)"
        )
    query, keys = (x.unflatten(-1, (heads, size)) for x in (query, keys))
    if (rotary := given.get("position_embeddings")) is not None:
        query, keys = (_rotated(x.float(), *rotary) for x in (query, keys))
    scale = getattr(attention, "scaling", None)
    scale = attention.scale if scale is None else scale
    return Attended(
        query, keys, scale, _seen_patches(given.get("attention_mask"), hidden.shape[:2])
    )


def _seen_patches(mask: Any, shape: Sequence[int]) -> Tensor | None:
    """bool `[tiles, patches]`, from the mask for any attention implementation: `[tiles, patches]`,
    or `[tiles, 1, queries, patches]` where all queries see the same, as numbers to be added too."""
    if mask is None:
        return None
    if hasattr(mask, "mask_mod"):  # of flex attention
        tiles, patches = (torch.arange(n, device=mask.kv_indices.device) for n in shape)
        return mask.mask_mod(tiles[:, None], tiles.new_zeros(()), tiles.new_zeros(()), patches)
    mask = mask if mask.ndim == 2 else mask[:, 0, 0]
    return mask == 0 if mask.is_floating_point() else mask.bool()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [..., patches, H, d]; cos, sin: [patches, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(-2).float() + turned * sin.unsqueeze(-2).float()
