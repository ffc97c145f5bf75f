"""Where the visual tokens of one chunk are: the only thing the runtime reads back from a device.

A chunk is what one forward of the multimodal model receives, `input_ids [B, S]` with placeholders
for the features of its images and clips. Image boundaries come from sizes, never from runs of
placeholders: two images may touch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor

from vtfast.errors import InputError
from vtfast.kernels.image_hash import image_hash


@dataclass(frozen=True)
class Segment:
    """The visual tokens of one image, one clip, or one frame of a clip. Host integers only."""

    sample: int
    left: int  # tokens still in the sequence
    original: int
    image: (
        int  # number of the image in the chunk, in reading order, as in `VisualTokens.image_hash`
    )
    grid: tuple[int, ...]  # frames, rows, columns it began with; 0 if unknown
    frame: int = 0


@dataclass
class Source:
    """Features of one kind (image or video) that a chunk brings, as the model family found them."""

    placeholder: Tensor  # bool [B, S]
    sizes: list[int] | Tensor  # tokens of each image, int64 [images] when only the device knows
    total: int  # sum of sizes
    grid: list[int] | Tensor  # frames, rows, columns of each image, one after another
    image_hash: Callable[[], Tensor] | None = None  # int64 [images], made when asked for


@dataclass
class VisualTokens:
    """The visual tokens of one chunk.

    `tokens`: int64 [n], flat positions `b * S + s`, ascending. `lengths`, `past`: valid (not
    padded) tokens of each sample in this chunk and before it; `past` is None when there is no mask.
    `image_hash`: makes int64 [images] in reading order, None without pixels. `mask`: [B, P + S] or
    None.
    """

    tokens: Tensor | None
    segments: list[Segment]
    lengths: list[int]
    past: list[int] | None = None
    image_hash: Callable[[], Tensor] | None = None
    images: list[int] = field(default_factory=list)  # images of each sample
    mask: Tensor | None = None
    arrived: bool = False  # at the text model


class LazyImageHash:
    """`image_hash(pixels, grid)`, computed at the first call, which then releases the pixels."""

    def __init__(self, pixels: Tensor, grid: Tensor | None = None) -> None:
        self._seen: tuple[Tensor, Tensor | None] | None = (pixels, grid)

    def __call__(self) -> Tensor:
        """int64 [images]."""
        if self._seen is not None:
            self._hash, self._seen = image_hash(*self._seen), None
        return self._hash


def to_device(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Host integers to an int64 device tensor without waiting for the device."""
    if not isinstance(values, Tensor):
        values = torch.tensor(values, device="cpu")
    host = values.to(torch.int64)
    if device.type != "cuda" or host.is_cuda:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _read(values: list[list[int] | Tensor], device: torch.device) -> list[list[int]]:
    """Values as host integers: the one host read of a prefill, none if all are lists already."""
    known = [v for v in values if isinstance(v, list)]
    if len(known) == len(values):
        return known
    tensors = [to_device(v, device).flatten() for v in values]
    flat = iter(torch.cat(tensors).tolist())
    return [list(islice(flat, len(t))) for t in tensors]


def valid_lengths(
    mask: Tensor | None, batch: int, chunk: int
) -> tuple[list[int], list[int] | None]:
    """Valid tokens of each sample in the last `chunk` columns of a mask and before: one read."""
    if mask is None:
        return [chunk] * batch, None
    now, before = _read([mask[:, -chunk:].sum(1), mask[:, :-chunk].sum(1)], mask.device)
    return now, before


def locate(sources: list[Source], mask: Tensor | None) -> VisualTokens:
    """Find segments, sample lengths and flat token positions of a chunk.

    `mask`: [B, P + S] attention mask over past and chunk, or None. Costs one host read, none where
    everything is known already: a single sample without mask whose sizes are on the host.
    """
    batch, chunk = sources[0].placeholder.shape
    tokens = [torch.nonzero_static(s.placeholder.flatten(), size=s.total)[:, 0] for s in sources]
    device = tokens[0].device
    asked: list[list[int] | Tensor] = []
    for source, position in zip(sources, tokens, strict=True):
        sizes = source.sizes
        if batch == len(sources) == 1 and mask is None and isinstance(sizes, list):
            starts: list[int] | Tensor = list(
                range(len(sizes))
            )  # in this order, all in the one sample
        else:
            sizes = to_device(sizes, device)
            starts = position[sizes.cumsum(0) - sizes]
        asked += [sizes, starts, source.grid]
    if mask is not None:
        now = mask[:, -chunk:]
        hidden = torch.stack([(now.flatten()[position] == 0).sum() for position in tokens])
        asked += [hidden, now.sum(1), mask[:, :-chunk].sum(1)]
    answer = _read(asked, device)
    lengths, past = (answer[-2], answer[-1]) if mask is not None else ([chunk] * batch, None)
    if mask is not None and any(answer[-3]):
        raise InputError(
            f"attention_mask hides {sum(answer[-3])} visual tokens; pruning counts all of a "
            "picture, so mask padding only and leave unwanted pictures out"
        )

    # (first token, size, grid, row of the image hashes of all sources joined)
    found: list[tuple[int, int, tuple[int, ...], int]] = []
    for i in range(len(sources)):
        sizes_, starts, grid = answer[3 * i : 3 * i + 3]
        offset = len(found)
        found += [
            (s, n, tuple(grid[3 * j : 3 * j + 3]), offset + j)
            for j, (s, n) in enumerate(zip(starts, sizes_, strict=True))
        ]
    found.sort()
    segments = [Segment(s // chunk, n, n, i, g) for i, (s, n, g, _) in enumerate(found)]
    images = [sum(s.sample == b for s in segments) for b in range(batch)]
    hashed = [s.image_hash for s in sources if s.image_hash is not None]

    def joined_hash() -> Tensor:
        joined = torch.cat([made() for made in hashed])
        return joined[to_device([row for *_, row in found], joined.device)]

    flat = tokens[0] if len(tokens) == 1 else torch.cat(tokens).sort().values
    known = joined_hash if len(hashed) == len(sources) else None
    return VisualTokens(flat, segments, lengths, past, known, images, mask)


def split_frames(segments: list[Segment]) -> list[Segment]:
    """Split clips into frames; a plan prunes no clip as a whole before that."""
    if any(s.grid[0] == 0 for s in segments):
        raise InputError(
            'per="frame" needs the number of frames, and a clip came as features without its grid; '
            "pass pixel_values_videos and video_grid_thw"
        )
    return [
        replace(s, left=s.left // n, original=s.original // n, grid=(1, *sides), frame=s.frame + f)
        for s in segments
        for n, *sides in [s.grid]
        for f in range(n)
    ]


def join_frames(segments: list[Segment]) -> list[Segment]:
    """Join the frames of a clip again."""
    out: list[Segment] = []
    for s in segments:
        if out and out[-1].image == s.image:
            last = out.pop()
            left, original = last.left + s.left, last.original + s.original
            grid = (last.grid[0] + s.grid[0], *s.grid[1:])
            out.append(replace(last, left=left, original=original, grid=grid))
        else:
            out.append(replace(s, frame=0))
    return out
