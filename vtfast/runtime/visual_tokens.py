"""Where the visual tokens of one chunk are.

A chunk is what one forward of the multimodal model receives, `input_ids [B, S]` with placeholders
for the features of its images and clips. Where images begin and end the family says
(`Source.measure`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vtfast.errors import InputError
from vtfast.methods.segments import Segment
from vtfast.runtime.call import Call, Parts, Source
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.host_read import to_device, to_host


@dataclass
class VisualTokens:
    """The visual tokens of one chunk.

    `tokens`: int64 [n], flat positions `b * S + s`, ascending. `lengths`, `past`: valid (not
    padded) tokens of each sample in this chunk and before it; `past` is None when there is no mask.
    `image_hash`: makes int64 [images] in reading order by the `impl` it is given, None without
    pixels. `vision_scores`: makes fp32 [n], None without pixels or need. `mask`: bool [B, P + S] or
    None. `after_prompt`: tokens of each sample behind its prompt. `config`: what the forward runs
    by; None for text alone.
    """

    tokens: Tensor | None
    segments: list[Segment]
    lengths: list[int]
    past: list[int] | None = None
    image_hash: Callable[[str], Tensor] | None = None
    vision_scores: Callable[[], Tensor] | None = None
    images: list[int] = field(default_factory=list)  # images of each sample
    mask: Tensor | None = None
    after_prompt: list[int] = field(default_factory=list)
    config: PatchConfig | None = None
    arrived: bool = False  # at the text model


def locate(call: Call, sources: Sequence[Source], mask: Tensor | None) -> VisualTokens:
    """Find segments, sample lengths and flat token positions of a chunk.

    `mask`: bool [B, P + S] over past and chunk, or None. Raises InputError.
    """
    device, (rows, columns) = sources[0].placeholder.device, call.shape
    lengths, past = np.diff(call.starts, append=rows * columns), None
    if call.mask is not None:
        lengths, past = call.valid.sum(1), call.mask[:, :-columns].sum(1).tolist()

    # (first token, last token, size, grids, number among the pictures of all sources joined)
    found: list[tuple[int, int, int, Parts, int]] = []
    hashed = 0
    for i, (placeholder, sizes) in enumerate(zip(call.placeholders, call.sizes, strict=True)):
        flat, ends = np.flatnonzero(placeholder), sizes.cumsum()
        first, last = flat[ends - sizes].tolist(), flat[ends - 1].tolist()
        parts, order = call.pictures[i].parts, call.order[i]
        number, hashed = (order + hashed).tolist(), hashed + len(parts)
        pictures = zip(first, last, sizes.tolist(), [parts[n] for n in order], number, strict=True)
        seen = np.split(call.valid.flatten()[flat], ends[:-1])
        found += [p for p, tokens in zip(pictures, seen, strict=False) if _is_seen(tokens)]
    found.sort()
    samples = [np.searchsorted(call.starts, f[:2], "right") - 1 for f in found]
    for image, (begins, ends) in enumerate(samples):
        if begins != ends:
            raise InputError(
                f"picture {image} begins in sample {begins} and ends in sample {ends}; pass "
                "pictures in the order of their placeholders, and position_ids of whole samples"
            )
    segments = [
        Segment(int(b), n, n, i, parts, parts)
        for i, ((b, _), (_, _, n, parts, _)) in enumerate(zip(samples, found, strict=True))
    ]
    images = [sum(s.sample == b for s in segments) for b in range(len(call.starts))]
    numbers = [number for *_, number in found]
    hashes, scores = ([getattr(s, x) for s in sources] for x in ("image_hash", "vision_scores"))

    def image_hash(impl: str) -> Tensor:
        made = [make(impl, told) for make, told in zip(hashes, call.pictures, strict=True)]
        return _in_order(made, [[1] * len(x) for x in made], numbers)

    def vision_scores() -> Tensor:
        made = [make(told) for make, told in zip(scores, call.pictures, strict=True)]
        return _in_order(made, [told.sizes for told in call.pictures], numbers)

    tokens = to_device(np.flatnonzero(call.visual), device)
    known = None if None in hashes else image_hash, None if None in scores else vision_scores
    return VisualTokens(tokens, segments, lengths.tolist(), past, *known, images, mask)


def _in_order(made: list[Tensor], rows: list[Sequence[int]], numbers: list[int]) -> Tensor:
    """What was made of pictures, so many rows of each, in the order of their numbers."""
    if numbers == list(range(sum(map(len, rows)))):
        return made[0] if len(made) == 1 else torch.cat(made)
    each = [x for part, n in zip(made, rows, strict=True) for x in part.split(list(n))]
    return torch.cat([each[number] for number in numbers])


def _is_seen(tokens: np.ndarray) -> bool:
    """Whether a picture, its tokens bool [n] by the mask, is there: one that is masked out as a
    whole is padding. Collators add such a picture to batches of text alone."""
    if tokens.any() and not tokens.all():
        raise InputError(
            f"attention_mask hides {int((~tokens).sum())} of a picture's {len(tokens)} visual "
            "tokens; pruning counts all of a picture, so mask pictures as a whole or not at all"
        )
    return bool(tokens.any())


def of_text(mask: Tensor | None, batch: int, chunk: int) -> VisualTokens:
    """A chunk without a picture, B samples of S tokens; one host read if there is a mask, bool."""
    if mask is None:
        return VisualTokens(None, [], [chunk] * batch)
    [valid] = to_host([mask])
    lengths, past = (part.sum(1).tolist() for part in (valid[:, -chunk:], valid[:, :-chunk]))
    return VisualTokens(None, [], lengths, past)
