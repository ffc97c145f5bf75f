"""Mixed into vLLM's models: choose after the vision tower, and place what stays where it was.

Where a token was is known only once its picture has been encoded, and vLLM plans a prompt before.
So the embeddings of tokens that stay carry their places in a few columns more, and a prompt's
pictures hold "here the picture begins" until they are filled in; text has its final place from the
start. Filling is idempotent: after a preemption, or a prefix found in the cache, it is done again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from vtfast.kernels.ragged import Ragged
from vtfast.methods.context import SelectionContext
from vtfast.methods.registry import method
from vtfast.vllm.config import settings_of
from vtfast.vllm.processor import KINDS, counted, placeholders
from vtfast.vllm.settings import KEEP

# frames, rows and columns of a picture's tokens, and what a frame adds to a token's place
Grid = tuple[int, int, int, float]

_DIGIT = 256  # whole numbers up to it are exact in bfloat16, in which places may ride
_COLUMNS = 6  # a place on three axes, two digits each


class Pruned:
    """Mixed into a model class of vLLM, in front of it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.settings = settings_of(self.config)  # type: ignore[attr-defined]
        self.width = self.config.get_text_config().hidden_size  # type: ignore[attr-defined]
        self.together = vllm_config.scheduler_config.max_num_batched_tokens
        if self.settings is not None:
            self.is_multimodal_pruning_enabled = False  # the stock class must not prune as well

    def grids_of(self, kind: str, call: dict[str, Any]) -> list[Grid]:
        """Of each picture in a call of the vision tower."""
        raise NotImplementedError

    def part(self, kind: str, call: dict[str, Any], first: int, last: int) -> dict[str, Any]:
        """The call for some of its pictures, from the first up to the last, excluded."""
        raise NotImplementedError

    def grid_of(self, feature: Any) -> Grid:
        """Of a picture in a prompt."""
        raise NotImplementedError

    def image_hash(self, kind: str, call: dict[str, Any]) -> Tensor:
        """int64 [pictures], as `vtfast.patch` makes them."""
        raise NotImplementedError

    def places(self, grid: Grid) -> Tensor:
        """int64 [tokens, 3], each token's place within its picture, on the axes of M-RoPE."""
        frames, rows, columns, step = grid
        sides = (torch.arange(n) for n in (frames, rows, columns))
        found = torch.cartesian_prod(*sides).view(-1, 3)
        found[:, 0] = (found[:, 0] * step).long()
        return found

    def get_encoder_cudagraph_config(self) -> Any:
        """A captured tower would go past `embed_multimodal`."""
        stock = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return stock if self.settings is None else replace(stock, modalities=[])

    def embed_multimodal(self, **kwargs: Any) -> Any:
        keep = {kind: kwargs.pop(f"{KEEP}_{kind}", None) for kind in KINDS}
        if self.settings is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        (kind,) = (kind for kind in KINDS if keep[kind] is not None)  # vLLM encodes one at a time
        grids = self.grids_of(kind, kwargs)
        whole: list[Tensor] = []
        for first, last in _batches([prod(grid[:3]) for grid in grids], self.together):
            call = self.part(kind, kwargs, first, last)
            whole += super().embed_multimodal(**call)  # type: ignore[misc]
        return self._choose(kind, kwargs, grids, whole, keep[kind].flatten().tolist())

    def _choose(
        self,
        kind: str,
        call: dict[str, Any],
        grids: Sequence[Grid],
        whole: Sequence[Tensor],
        keep: Sequence[float],
    ) -> tuple[Tensor, ...]:
        settings = self.settings
        assert settings is not None
        lengths = [len(one) for one in whole]
        counts = [counted(settings, *one) for one in zip(keep, lengths, strict=True)]
        kept = torch.cat(tuple(whole))
        chosen = torch.arange(len(kept), device=kept.device)
        if counts != lengths:
            context = SelectionContext.of_features(
                kept[:, : self.width],  # what more there is goes to deeper layers
                Ragged.from_lengths(lengths, kept.device),
                counts,
                parts=[(grid[:3],) for grid in grids],
                seed=settings.seed,
                options=settings.stage.options,
                image_hash=lambda: self.image_hash(kind, call),
            )
            chosen = method(settings.stage.method).select(context).long()
            kept = kept[chosen]
        if settings.positions == "keep":
            places = torch.cat([self.places(grid) for grid in grids]).to(kept.device)[chosen]
            digits = torch.cat((places // _DIGIT, places % _DIGIT), 1)
            kept = torch.cat((kept, digits.to(kept.dtype)), 1)
        return kept.split(counts)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Any) -> Any:
        """int64 [3, tokens], and by how much they go beyond the tokens. A picture's tokens hold
        where it begins, -1 and -1."""
        if self.settings is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        positions = torch.zeros(3, len(input_tokens), dtype=torch.int64)
        done = place = 0  # tokens, and the place of the next one
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            start, length = feature.mm_position.offset, feature.mm_position.length
            positions[:, done:start] = torch.arange(place, place + start - done)
            place += start - done
            positions[0, start : start + length] = place
            positions[1:, start : start + length] = -1
            place += int(self.places(self.grid_of(feature)).max()) + 1
            done = start + length
        positions[:, done:] = torch.arange(place, place + len(input_tokens) - done)
        return positions, place - done

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Fill in the places that embeddings of this chunk carry, and take them off."""
        if self.settings is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        total = sum(map(len, multimodal_embeddings))
        if not total:
            return list(multimodal_embeddings), mrope_positions, _beyond(mrope_positions)
        device = mrope_positions.device
        ids = torch.as_tensor(input_ids, device=device)[num_computed_tokens:]
        stand_in = torch.isin(ids, torch.tensor(placeholders(self.config), device=device))  # type: ignore[attr-defined]
        at = stand_in.nonzero()[:total, 0] + num_computed_tokens
        digits = torch.cat([one[:, -_COLUMNS:] for one in multimodal_embeddings]).to(device).long()
        places = (digits[:, :3] * _DIGIT + digits[:, 3:]).T.to(mrope_positions.dtype)
        positions, old = mrope_positions.clone(), mrope_positions[:, at]
        positions[:, at] = torch.where(old[1] < 0, old[0] + places, old)
        embeddings = [one[:, :-_COLUMNS] for one in multimodal_embeddings]
        return embeddings, positions, _beyond(positions)


def _beyond(positions: Tensor) -> int:
    """By how much the place after a prompt goes beyond its tokens."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def _batches(tokens: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Runs of pictures of so many tokens together, or one picture. vLLM plans the work of the tower
    by the tokens that stay, and has measured its memory with as many before any pruning."""
    first = 0
    for last in range(1, len(tokens) + 1):
        if last == len(tokens) or sum(tokens[first : last + 1]) > most:
            yield first, last
            first = last
