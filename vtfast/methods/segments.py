"""The visual tokens of one image, clip, frame or tile, counted on the host."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from vtfast.errors import InputError

# Frames, rows and columns of visual tokens; 0 where unknown.
Grid = tuple[int, ...]
_SINGLE = (1, 1, 1)  # one token that is no patch: of a class, or of a new line


@dataclass(frozen=True)
class Segment:
    """The visual tokens of one image, clip, frame or tile. Host integers only."""

    sample: int
    left: int  # tokens still in the sequence
    original: int
    image: int  # number of the image in the chunk, in reading order
    picture: tuple[Grid, ...]  # the grids that the whole image began with, one after another
    parts: tuple[Grid, ...]  # those of this segment
    number: int = 0  # of this segment in the image


def split(segments: Sequence[Segment], per: str) -> list[Segment]:
    """Cut pictures into what one budget covers: "frame" cuts clips, "tile" images of several tiles.

    A plan prunes none as a whole before that. Raises InputError where it is unknown how to cut.
    """
    out = []
    for s in segments:
        if any(steps == 0 for steps, *_ in s.parts):
            raise InputError(
                f'per="{per}" needs to know the {per}s of a picture, and one came as features '
                "without its grid; pass the pictures as pixels, with the sizes that the processor "
                "gives"
            )
        pieces = _pieces(s.parts, per)
        if len(pieces) == 1:
            out.append(s)
            continue
        for number, parts in enumerate(pieces):
            size = sum(map(prod, parts))
            out.append(replace(s, left=size, original=size, parts=parts, number=number))
    return out


def join(segments: Sequence[Segment]) -> list[Segment]:
    """Put what `split` has cut together again."""
    out: list[Segment] = []
    for s in segments:
        whole = replace(s, parts=s.picture, number=0)
        if out and out[-1].image == s.image:
            last = out.pop()
            whole = replace(whole, left=last.left + s.left, original=last.original + s.original)
        out.append(whole)
    return out


def lengths_after(
    lengths: Sequence[int], before: Sequence[Segment], after: Sequence[Segment]
) -> list[int]:
    """Tokens of each sample when its segments have become shorter."""
    out = list(lengths)
    for had, has in zip(before, after, strict=True):
        out[had.sample] -= had.left - has.left
    return out


def _pieces(parts: Sequence[Grid], per: str) -> list[tuple[Grid, ...]]:
    """The grids of every frame or tile. A single token goes with the piece before it."""
    if per == "frame" and all(steps == 1 for steps, *_ in parts):
        return [tuple(parts)]  # no clip
    pieces: list[tuple[Grid, ...]] = []
    for steps, *sides in parts:
        grid = (steps, *sides)
        if (grid == _SINGLE and pieces) or (pieces and pieces[-1] == (_SINGLE,)):
            pieces[-1] += (grid,)
        elif per == "frame":
            pieces += [((1, *sides),)] * steps
        else:
            pieces.append((grid,))
    return pieces
