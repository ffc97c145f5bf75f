"""Read the user's pictures and videos, or say in one line what is wrong with them.

A video ("clip") is a folder of frames, frame files in the order given, or one animated picture
(GIF, WebP, PNG). Only Pillow is used; films have to be split into frames first.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtfast.errors import InputError

FRAMES_PER_SECOND = 2.0  # of frames whose rate is unknown: what Qwen2.5-VL samples films at
_SPLIT_FILMS = "; split a film into frames first: ffmpeg -i film.mp4 -r 2 frames/%04d.png"


@dataclass(frozen=True)
class Clip:
    """A video: frames of one size in the order they are seen, `fps` of them per second."""

    frames: tuple[Image.Image, ...]
    fps: float


def open_picture(path: Path, option: str = "--image") -> Image.Image:
    """The picture in a file, RGB and upright. Raises InputError, which names `option`."""
    if re.match(r"https?:/", str(path)):
        raise InputError(f"{option} {path}: expected a file; download the picture first")
    with _reading(path, option), Image.open(path) as picture:
        return _upright(picture)


def read_clip(paths: Sequence[Path], max_frames: int, fps: float | None = None) -> Clip:
    """The video in a folder of frames, in frame files, or in one animated picture.

    Args:
        paths: one folder, one animated picture, or frame files in order. The pictures of a folder
            are sorted by name, with numbers compared by value: frame2 before frame10.
        max_frames: int ≥ 1. If there are more, this many are taken evenly, with the first and last.
        fps: frames per second of all frames. None: the animation's own rate, else 2.

    Raises InputError for what cannot be read, and for frames of different sizes.
    """
    own = None
    if len(paths) > 1 or paths[0].is_dir():
        files = list(paths) if len(paths) > 1 else _frame_files(paths[0])
        total = len(files)
        frames = [open_picture(files[i], "--video") for i in evenly(total, max_frames)]
    else:
        frames, total, own = _animation(paths[0], max_frames)
    sizes = dict.fromkeys(f"{width}x{height}" for width, height in (f.size for f in frames))
    if len(sizes) > 1:
        raise InputError(
            f"--video: frames of different sizes ({', '.join(sizes)}); pass frames of one size, or "
            "pictures that do not belong together with --image"
        )
    return Clip(tuple(frames), (fps or own or FRAMES_PER_SECOND) * len(frames) / total)


def evenly(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … total-1, evenly spaced, with the first and the last.

    >>> evenly(9, 3)
    [0, 4, 8]
    """
    if total <= most:
        return list(range(total))
    return [round(i * (total - 1) / max(1, most - 1)) for i in range(most)]


def _frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by their names."""
    known = Image.registered_extensions()
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in known and not file.name.startswith(".")
    ]
    if not files:
        raise InputError(f"--video {folder}: there is no picture in this folder{_SPLIT_FILMS}")
    return sorted(files, key=lambda file: [_by_value(p) for p in re.split(r"(\d+)", file.name)])


def _by_value(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


def _animation(path: Path, max_frames: int) -> tuple[list[Image.Image], int, float | None]:
    """Frames taken of an animated picture, how many it has, and its frames per second if known."""
    frames, milliseconds = [], 0.0
    with _reading(path, "--video"), Image.open(path) as picture:
        total = getattr(picture, "n_frames", 1)
        wanted = evenly(total, max_frames)
        for number in range(total):
            picture.seek(number)
            milliseconds += picture.info.get("duration", 0)
            if number in wanted:
                frames.append(_upright(picture))
    if total == 1:
        raise InputError(
            f"--video {path} is a single picture; pass it with --image, or pass a folder of frames"
        )
    return frames, total, 1000 * total / milliseconds if milliseconds else None


def _upright(picture: Image.Image) -> Image.Image:
    """RGB, upright by its EXIF data; 16-bit greys are scaled, where Pillow would clip them."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(f"its {picture.mode} values have no known range; save it with 8 bits")
    return picture.convert("RGB")


@contextmanager
def _reading(path: Path, option: str) -> Iterator[None]:
    """Turn any error of Pillow or the file system into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about a large or odd picture is no error
            yield
    except FileNotFoundError:
        raise InputError(f"{option} {path}: there is no such file") from None
    except IsADirectoryError:
        hint = "; a folder of frames goes with --video" if option == "--image" else ""
        raise InputError(f"{option} {path} is a folder; pass the name of a picture{hint}") from None
    except UnidentifiedImageError:
        hint = _SPLIT_FILMS if option == "--video" else "; convert it to PNG or JPEG"
        raise InputError(f"{option} {path} is not a picture that Pillow can read{hint}") from None
    except Exception as error:  # a decoder may raise anything on a broken file
        reason = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
        raise InputError(f"{option} {path}: cannot read this picture: {reason}") from None
