"""What a call of the multimodal model says of its tokens: read once, then plain NumPy.

A row of the batch holds one sample, or several that a collator has packed into it without padding
(padding-free training). Packed samples show in `position_ids` that start again, as in transformers'
own mask functions; `attention_mask` is absent then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError
from vtfast.runtime.host_read import to_host

PROMPT_IDS = "vtfast_prompt_ids"  # input_ids of a prompt that comes as inputs_embeds
IGNORED = -100  # a label that counts for nothing
# What FlashAttention is told of packed samples; true only of rows that have lost no token.
FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


# The grids of a picture, one after another: frames, rows, columns of visual tokens, 0 if unknown.
Parts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Pictures:
    """What is in the pictures of one kind, in reading order.

    Attributes:
        sizes: visual tokens of each.
        parts: the grids of each.
        tiles: tiles of each, where the tower is given several; None: one each.
        sides: pixels down and across of each, where a raster of its tiles is cut to them.
    """

    sizes: Sequence[int]
    parts: Sequence[Parts]
    tiles: Sequence[int] | None = None
    sides: Sequence[tuple[int, int]] | None = None


@dataclass
class Source:
    """Features of one kind (image or video) that a call brings, as the model family found them.

    Attributes:
        placeholder: bool [B, S], where the features go.
        measure: says what the pictures are, from `placeholder` and the tensors in `asked`, all of
            them NumPy's, read together.
        asked: tensors that `measure` needs.
        image_hash: makes int64 [images] when asked for, by the `impl` it is given; it is told what
            `measure` said. None without pixels.
        vision_scores: makes fp32 [visual tokens], likewise; None where they are not needed, too.
        copies: neighbouring rows that hold the same pictures, as those of beams do. `measure`,
            `image_hash` and `vision_scores` know of the first of them.
    """

    placeholder: Tensor
    measure: Callable[..., Pictures]
    asked: tuple[Tensor, ...] = ()
    image_hash: Callable[[str, Pictures], Tensor] | None = None
    vision_scores: Callable[[Pictures], Tensor] | None = None
    copies: int = 1


@dataclass(frozen=True)
class Call:
    """One call on the host, B rows of S tokens.

    Attributes:
        shape: B and S.
        placeholders: for each source of features, bool [B, S].
        pictures: for each source, what is in the first rows of `copies`.
        order: for each source, int64 [images], which of those every picture is.
        starts: int64 [samples], flat positions `b * S + s` where samples begin.
        mask: bool [B, P + S] over past and chunk, or None.
        labels: bool [B, S], where a label counts, or None.
        prompt_length: int64 [samples] or [1], as the caller gave it, or None.
    """

    shape: tuple[int, int]
    placeholders: list[np.ndarray]
    pictures: list[Pictures]
    order: list[np.ndarray]
    starts: np.ndarray
    mask: np.ndarray | None
    labels: np.ndarray | None
    prompt_length: np.ndarray | None

    @property
    def is_joined(self) -> bool:
        """Whether a row holds several samples."""
        return len(self.starts) > self.shape[0]

    @property
    def valid(self) -> np.ndarray:
        """bool [B, S]: tokens of the chunk that are no padding."""
        if self.mask is None:
            return np.ones(self.shape, dtype=bool)
        return self.mask[:, -self.shape[1] :]

    @property
    def visual(self) -> np.ndarray:
        """bool [B, S]: tokens that the features of a picture replace, if it is not masked out."""
        return np.logical_or.reduce(self.placeholders) & self.valid

    @property
    def has_all_features(self) -> bool:
        """Whether there is a feature for every placeholder and a placeholder for every feature."""
        return all(p.sum() == n.sum() for p, n in zip(self.placeholders, self.sizes, strict=True))

    @property
    def sizes(self) -> list[np.ndarray]:
        """For each source, int64 [images]: the visual tokens of every picture."""
        sizes = (np.array(found.sizes, dtype=np.int64) for found in self.pictures)
        return [size[order] for size, order in zip(sizes, self.order, strict=True)]


def read_call(
    given: Mapping[str, Any],
    sources: Sequence[Source],
    mask: Tensor | None,
    position_axes: tuple[int, ...],
    prompt_length: Any,
) -> Call:
    """Everything the host needs of a call with pictures; one host read.

    mask: [B, P + S] or None. position_axes: as `Family.position_axes`. Raises InputError.
    """
    placeholder = sources[0].placeholder
    device, (rows, columns) = placeholder.device, placeholder.shape
    asked: dict[str | tuple[int, int], Tensor] = {}
    for i, source in enumerate(sources):
        asked[i, 0] = source.placeholder
        for j, values in enumerate(source.asked):
            asked[i, 1 + j] = values.to(device, torch.int64)
    labels, positions = given.get("labels"), given.get("position_ids")
    if mask is not None:
        asked["mask"] = mask
    if isinstance(labels, Tensor) and labels.shape == placeholder.shape:
        asked["labels"] = labels.to(device) != IGNORED
    if isinstance(positions, Tensor) and mask is None:
        asked["starts"] = sample_starts(positions, position_axes).expand(rows, columns)
    if given.get(FLASH_ARGUMENTS[0]) is not None:
        asked["cu_seq_lens"] = given[FLASH_ARGUMENTS[0]].to(device, torch.int64)
    if prompt_length is not None:
        asked["prompt"] = _lengths(prompt_length).to(device)
    found = dict(zip(asked, to_host(list(asked.values())), strict=True))

    starts = np.arange(rows) * columns
    if "starts" in found:
        starts = np.flatnonzero(found["starts"])
    if "cu_seq_lens" in found and mask is None:
        _check_flash(found["cu_seq_lens"], starts)
    placeholders, pictures, order = [], [], []
    for i, source in enumerate(sources):
        placed, *asked_for = (found[i, j] for j in range(1 + len(source.asked)))
        placeholders.append(placed)
        pictures.append(source.measure(placed[:: source.copies], *asked_for))
        order.append(_order(placed, pictures[-1].sizes, source.copies))
    told = (found.get(name) for name in ("mask", "labels", "prompt"))
    return Call((rows, columns), placeholders, pictures, order, starts, *told)


def _order(placed: np.ndarray, sizes: Sequence[int], copies: int) -> np.ndarray:
    """int64 [images]: the numbers of pictures in the order of rows, where every first of `copies`
    rows has its own pictures and the others have those again."""
    if copies == 1:
        return np.arange(len(sizes))
    row = np.searchsorted(placed[::copies].sum(1).cumsum(), np.cumsum(sizes))
    own = [np.flatnonzero(row == r) for r in range(len(placed) // copies)]
    return np.concatenate([np.tile(numbers, copies) for numbers in own])


def sample_starts(positions: Tensor, axes: tuple[int, ...]) -> Tensor:
    """bool [B, S]: where a sample begins, from `position_ids` [B, S] or [axes, B, S].

    Positions of text, [B, S] or the first of axes + 1, begin anew wherever they do not go up by
    one, which is transformers' rule. M-RoPE positions stand still within a picture; they begin anew
    where time goes back, or all axes are 0.
    """
    of_text = positions[0] if positions.ndim == 3 else positions
    step = torch.diff(of_text, prepend=of_text[:, :1] - 1)
    if (positions.ndim == 2 and not axes) or (positions.ndim == 3 and len(positions) > axes[0]):
        starts = step != 1
    elif positions.ndim == 3:
        starts = (step < 0) | (positions == 0).all(0)
    else:
        starts = (step < 0) | (positions == 0)
    return torch.cat([torch.ones_like(starts[:, :1]), starts[:, 1:]], 1)


def _lengths(given: Any) -> Tensor:
    """`prompt_length` as int64 [samples] or [1]. Raises InputError."""
    try:
        lengths = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        lengths = torch.zeros((), dtype=torch.float32)
    if lengths.dtype.is_floating_point or lengths.dtype == torch.bool or lengths.ndim > 1:
        raise InputError(
            f"prompt_length={given!r}; pass the tokens of the prompt, an int or one for each sample"
        )
    return lengths.to(torch.int64).reshape(-1)


def _check_flash(boundaries: np.ndarray, starts: np.ndarray) -> None:
    """FlashAttention's packed samples must be those of the positions."""
    if not np.array_equal(boundaries[:-1], starts):
        raise InputError(
            f"cu_seq_lens_q begins samples at {boundaries[:-1].tolist()} and position_ids at "
            f"{starts.tolist()}; pass position_ids that start again at 0 in every packed sample"
        )
