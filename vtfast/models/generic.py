"""Which pictures a call brings, for every family whose pictures come through `get_image_features`
and `get_video_features`, as those of nearly all of transformers do.

`generate` calls these methods before the forward and hands on what they return. There our note
says what the pictures were made from; in a plain forward the call does.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtfast.errors import InputError
from vtfast.kernels._mix64 import mix64
from vtfast.kernels.image_hash import image_hash
from vtfast.models.vision_scores import (
    HOW,
    Attended,
    VisionScores,
    check_layer,
    encoding,
    expect,
    expected,
    is_encoding,
    watch,
)
from vtfast.runtime.call import PROMPT_IDS, Pictures, Source
from vtfast.runtime.host_read import to_device

IDS = "vtfast_ids"  # of the rows with pictures of their own, beside the arguments of a call
_NOTE = "vtfast_note"
# Says what the pictures are, and the tensors it needs for that, as `Source` wants them.
Measured = tuple[Callable[..., Pictures], tuple[Tensor, ...]]


class Kind(NamedTuple):
    """Names of one kind of picture: of the pixels, of the placeholder's id in the config, and of
    more that says what the pixels are."""

    pixels: str
    token: str
    more: tuple[str, ...] = ()


class PictureReader(ABC):
    """Finds the pictures of a call.

    kinds: "image" and, where clips are known, "video". line_ends: whether all grids of a picture
    but the first have a token at the end of each row that is no patch.
    """

    kinds: Mapping[str, Kind] = {"image": Kind("pixel_values", "image_token_id")}
    line_ends = False

    @abstractmethod
    def measured(
        self, multimodal: Any, kind: str, call: Mapping[str, Any], sizes: list[int] | None
    ) -> Measured | None:
        """What the pictures are, from the arguments of `get_{kind}_features`, as far as given.

        sizes: of pictures that the caller has encoded, from their features. Without pixels and
        sizes the features are in the embeddings already; None where they cannot be told apart.
        """

    def hashes(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> "LazyImageHash":
        """The hashes of pictures given as pixels."""
        return LazyImageHash(call[self.kinds[kind].pixels])

    def tower_attention(self, multimodal: Any) -> tuple[list[nn.Module], bool]:
        """The attention module of the vision tower that scores visual tokens, with copies of it
        that may run in its place, and whether the tower has a class token. A family without one
        refuses methods that need vision scores."""
        raise NotImplementedError

    def watch_tower(self, multimodal: Any) -> list[RemovableHandle]:
        """See from now on what vision scores are made from, while pictures are encoded."""
        modules, class_token = self.tower_attention(multimodal)
        return [watch(module, class_token) for module in modules]

    def vision_scores(
        self, multimodal: Any, call: Mapping[str, Any], attended: Attended, pictures: Pictures
    ) -> Tensor:
        """fp32 [visual tokens]: attention that the visual tokens of pictures got in that module.

        call: the arguments of `get_image_features` or `get_video_features`, pixels without data.
        """
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[str, ...]:
        """Arguments of the multimodal model that `sources` reads."""
        return ("input_ids", *(n for k in self.kinds.values() for n in (k.pixels, *k.more)))

    def sources(
        self, multimodal: Any, kwargs: Mapping[str, Any], needs: Collection[str] = ()
    ) -> list[Source]:
        """The features a call of the multimodal model brings; empty in decoding.

        `kwargs` holds `input_ids` too. needs: as `Method.needs`.
        """
        found, awaited = [], []
        merged = kwargs.get("inputs_embeds") is not None and prompt_ids(kwargs) is not None
        brings = [kind for kind in self.kinds if self._is_given(kwargs, kind)]
        for kind in brings or (self._kinds_apart() if merged else ()):
            features, call, copies, sizes = _encoded(kwargs, kind), kwargs, 1, None
            hashes = scores = None
            if kwargs.get(self.kinds[kind].pixels) is not None:
                hashes = self.hashes(multimodal, kind, kwargs)
                if features is None and "vision_scores" in needs:
                    scores = self._scores(multimodal, kind, kwargs)
                    awaited.append(scores)
            note = getattr(features, _NOTE, None)
            if features is None:
                pass
            elif note is not None and (times := _copies(features.pooler_output, note.made)):
                call, hashes, scores, copies = note.call, note.hashes, note.scores, times
                if hashes is None and "image_hash" in needs:
                    raise InputError(
                        "the plan needs hashes of pixels, and the features of these pictures were "
                        "made for one that does not; encode them again, or pass them as pixels"
                    )
            else:
                sizes = [f.numel() // f.shape[-1] for f in features.pooler_output]
            if "vision_scores" in needs:
                check_layer(multimodal, call)
            ids = prompt_ids(kwargs)
            call = {**call, IDS: None if ids is None else ids[::copies]}
            measured = self.measured(multimodal, kind, call, sizes)
            if measured is not None:
                where = placeholders(multimodal, kwargs, self._token(multimodal, kind))
                found.append(Source(where, *measured, hashes, scores, copies))
        if brings:
            expect(awaited)
        return found

    def encode(
        self,
        multimodal: Any,
        kind: str,
        call: Mapping[str, Any],
        make: Callable[[], Any],
        needs: Collection[str],
    ) -> Any:
        """The features that `make` makes of pictures, and on them what they were made from: the
        arguments of `get_{kind}_features`, but their pixels only for image hashes. `generate` makes
        them before the forward."""
        scores = None if is_encoding() else expected(kind)  # to some families clips are pictures
        if scores is None and "vision_scores" in needs and not is_encoding():
            scores = self._scores(multimodal, kind, call)
        with nullcontext() if scores is None else encoding(scores):
            features = make()
        name = self.kinds[kind].pixels
        if isinstance(features, tuple) or name not in call:  # 5.17 has other names, and no need
            return features
        hashes = self.hashes(multimodal, kind, call) if "image_hash" in needs else None
        note = _Note(_without_data(call, name), hashes, scores, features.pooler_output)
        setattr(features, _NOTE, note)
        return features

    def _scores(self, multimodal: Any, kind: str, call: Mapping[str, Any]) -> VisionScores:
        # Not the whole call: it may hold a cache.
        wanted = {name: call[name] for name in (self.kinds[kind].pixels, *HOW) if name in call}
        given = _without_data(wanted, self.kinds[kind].pixels)
        return VisionScores(kind, partial(self.vision_scores, multimodal, given))

    def _is_given(self, kwargs: Mapping[str, Any], kind: str) -> bool:
        return _encoded(kwargs, kind) is not None or kwargs.get(self.kinds[kind].pixels) is not None

    def _kinds_apart(self) -> list[str]:
        """The kinds whose placeholders differ."""
        tokens = [of_kind.token for of_kind in self.kinds.values()]
        return [kind for i, kind in enumerate(self.kinds) if tokens[i] not in tokens[:i]]

    def _token(self, multimodal: Any, kind: str) -> int:
        token: int = getattr(multimodal.config, self.kinds[kind].token)
        return token


@dataclass(frozen=True)
class _Note:
    """What features were made from: the arguments, but pixels without data; the image hashes and
    vision scores; and the features as they were then. It is not copied or saved with them."""

    call: Mapping[str, Any]
    hashes: "LazyImageHash | None"
    scores: VisionScores | None
    made: Any

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class LazyImageHash:
    """The op `image_hash`, which runs at the first call; that call then releases the pixels.

    pixels: [images, ...], all of one size; or the patches of all images, [patches, D], with the
    grid int64 [images, 3] of each.
    """

    def __init__(self, pixels: Tensor, grid: Tensor | None = None) -> None:
        self._seen: tuple[Tensor, Tensor | None] | None = (pixels, grid)

    def __call__(self, impl: str, pictures: Pictures) -> Tensor:
        """int64 [images]. impl: which implementation of the op to run."""
        if self._seen is not None:
            pixels, grid = self._seen
            grid = None if grid is None else grid.to(pixels.device)
            self._hash, self._seen = self._of(pixels, grid, impl, pictures), None
        return self._hash

    def _of(self, pixels: Tensor, grid: Tensor | None, impl: str, pictures: Pictures) -> Tensor:
        return image_hash(pixels, grid, impl=impl)


class TileHash(LazyImageHash):
    """The hash of every image of several tiles:

        hash(image) = Σ_i mix64(hash(tile i), i)     mod 2⁶⁴

    pixels: [tiles, C, H, W]; or [images, most tiles, C, H, W], where the rest is anything; or
    [samples, most tiles, C, H, W], where the rest, and it alone, is zeros (`by_sample`).
    """

    def __init__(self, pixels: Tensor, *, by_sample: bool = False) -> None:
        super().__init__(pixels)
        self._by_sample = by_sample

    def _of(self, pixels: Tensor, grid: Tensor | None, impl: str, pictures: Pictures) -> Tensor:
        assert pictures.tiles is not None
        numbers = np.concatenate([np.arange(n) for n in pictures.tiles])
        owner = np.repeat(np.arange(len(pictures.tiles)), pictures.tiles)
        flat = pixels.flatten(0, -4)
        made = image_hash(flat, impl=impl)
        if len(made) > len(numbers) and self._by_sample:  # found without waiting for the device
            there = flat.flatten(1).any(1).sort(descending=True, stable=True).indices
            made = made[there[: len(numbers)]]
        elif len(made) > len(numbers):
            made = made[to_device(owner * pixels.shape[1] + numbers, made.device)]
        of_images = made.new_zeros(len(pictures.tiles))
        number, image = (to_device(x, made.device) for x in (numbers, owner))
        return of_images.index_add_(0, image, mix64(made, number))


def runs(placed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions where runs of placeholders begin, and their lengths; placed: bool [B, S]."""
    edges = np.diff(np.pad(placed, ((0, 0), (1, 1))).astype(np.int8)).reshape(-1)
    # A padded row has a place more at either end, an edge lies between two of them.
    first, behind = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return first - first // (placed.shape[1] + 1), behind - first


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


def _without_data(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a call, the tensor of this name with its shape alone."""
    given = call.get(name)
    shape = torch.empty_like(given, device="meta") if isinstance(given, Tensor) else given
    return {**call, name: shape}


def _copies(now: Any, made: Any) -> int:
    """How often features repeat those that were made, as `generate` does for beams; 0 if they are
    no repetition. Tensors are known again by their shapes, entries of lists themselves."""
    if now is made:
        return 1
    if isinstance(made, Tensor):
        like = isinstance(now, Tensor) and now.shape[1:] == made.shape[1:]
    else:
        like = {id(f) for f in now} == {id(f) for f in made}
    return len(now) // len(made) if like and len(now) % len(made) == 0 else 0


def _encoded(kwargs: Mapping[str, Any], kind: str) -> Any | None:
    """The features of one kind of picture if they are made already, by `generate`; else None."""
    given = kwargs.get("mm_encoder_outputs")
    encoded = given.get(kind) if isinstance(given, Mapping) else None
    if encoded is not None and getattr(encoded, "last_hidden_state", None) is None:
        raise InputError(
            "the features of the pictures came in chunks (prefill_chunk_size), which "
            "splits images; leave prefill_chunk_size unset while the model is patched"
        )
    return encoded
