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


@dataclass
class Source:
    """Features of one kind (image or video) that a call brings, as the model family found them.

    Attributes:
        placeholder: bool [B, S], where the features go.
        sizes: tokens of each image, int64 [images] where only the device knows. An int where all
            are alike and their number follows from the placeholders; None where nothing but the
            tokens that the family puts around every picture tells them apart.
        grid: frames, rows, columns of each image, one after another; of one where `sizes` is no
            list of them.
        image_hash: makes int64 [images] when asked for, by the `impl` it is given; None without
            pixels.
    """

    placeholder: Tensor
    sizes: list[int] | Tensor | int | None
    grid: list[int] | Tensor
    image_hash: Callable[[str], Tensor] | None = None


@dataclass(frozen=True)
class Call:
    """One call on the host, B rows of S tokens.

    Attributes:
        shape: B and S.
        placeholders: for each source of features, bool [B, S].
        sizes, grids: for each source, int64 [images] and [3 * images].
        starts: int64 [samples], flat positions `b * S + s` where samples begin.
        mask: bool [B, P + S] over past and chunk, or None.
        labels: bool [B, S], where a label counts, or None.
        prompt_length: int64 [samples] or [1], as the caller gave it, or None.
    """

    shape: tuple[int, int]
    placeholders: list[np.ndarray]
    sizes: list[np.ndarray]
    grids: list[np.ndarray]
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
    asked: dict[str | tuple[str, int], Tensor] = {}
    for i, source in enumerate(sources):
        asked["placeholder", i] = source.placeholder
        for name, values in (("size", source.sizes), ("grid", source.grid)):
            if isinstance(values, Tensor):
                asked[name, i] = values.to(device, torch.int64)
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
    placeholders, sizes, grids = [], [], []
    for i, source in enumerate(sources):
        placed = found["placeholder", i]
        size = _sizes(source, placed, found.get(("size", i)))
        grid = found.get(("grid", i))
        if grid is None:
            one_for_all = not isinstance(source.sizes, list | Tensor)
            grid = np.tile(np.array(source.grid, np.int64), len(size) if one_for_all else 1)
        placeholders.append(placed)
        sizes.append(size)
        grids.append(grid)
    told = (found.get(name) for name in ("mask", "labels", "prompt"))
    return Call((rows, columns), placeholders, sizes, grids, starts, *told)


def _sizes(source: Source, placed: np.ndarray, read: np.ndarray | None) -> np.ndarray:
    """Tokens of each image of a source, whose placeholders are `placed`, bool [B, S]."""
    if read is not None:
        return read
    if source.sizes is None:
        edges = np.diff(np.pad(placed, ((0, 0), (1, 1))).astype(np.int8).flatten())
        return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    if isinstance(source.sizes, int):
        return np.full(-(-int(placed.sum()) // source.sizes), source.sizes)
    return np.array(source.sizes, dtype=np.int64)


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
