"""The visual tokens of one image, clip or frame, counted on the host."""

from dataclasses import dataclass, replace

from vtfast.errors import InputError


@dataclass(frozen=True)
class Segment:
    """The visual tokens of one image, one clip, or one frame of a clip. Host integers only."""

    sample: int
    left: int  # tokens still in the sequence
    original: int
    image: int  # number of the image in the chunk, in reading order
    grid: tuple[int, ...]  # frames, rows, columns it began with; 0 if unknown
    frame: int = 0


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
