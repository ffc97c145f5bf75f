"""Read the user's pictures and videos, or say in one line what is wrong with them.

A picture is read in one way, wherever it comes from (a file, an encoded string, an opened picture):
turned upright by its EXIF data, 16-bit greys scaled to 8 bits, what is transparent put on white,
and then RGB. Of several frames the first is taken.

A video ("clip") is a folder of frames, frame files in the order given, or one animated picture
(GIF, WebP, PNG). Only Pillow is used; films have to be split into frames first.
"""

import base64
import binascii
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtfast.errors import InputError
from vtfast.processors import on_white

FRAMES_PER_SECOND = 2.0  # of frames whose rate is unknown: what Qwen2.5-VL samples films at
_URL = re.compile(r"(?!data:)[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # two letters: C:/ is a drive
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{50,}={0,2}\s*")
# Further frames of these are no pictures of their own: previews, depth maps, layers.
_ONE_PICTURE = ("MPO", "PSD")
_SPLIT_FILMS = "; split a film into frames first: ffmpeg -i film.mp4 -r 2 frames/%04d.png"


@dataclass(frozen=True)
class Clip:
    """A video: frames of one size in the order they are seen, `fps` of them per second."""

    frames: tuple[Image.Image, ...]
    fps: float


# A file, the bytes of one, or an opened picture.
Source = Path | bytes | Image.Image


def picture_source(value: Any, folder: Path = Path()) -> Source:
    """What a user names as a picture, as `open_picture` takes it.

    value: a path, relative to `folder`; the bytes of a picture file, as they are or as text (a data
        URL, base64); or an opened picture.

    Raises InputError for anything else, with what to do. The picture itself is not read.
    """
    if isinstance(value, Image.Image | bytes):
        return value
    if isinstance(value, str) and (value.startswith("data:") or _BASE64.fullmatch(value)):
        return _decoded(value)
    if isinstance(value, str | os.PathLike):
        _check_local(str(value), "picture")
        return folder / value
    kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    fix = "pass a file or an opened picture"
    if hasattr(value, "shape"):
        fix = "make a picture of it: PIL.Image.fromarray(uint8 array [height, width, 3])"
    raise InputError(f"got {kind} as a picture; {fix}")


def open_picture(source: Source, option: str = "--image") -> Image.Image:
    """A picture, upright, on white where it is transparent, and RGB.

    A source that is an opened picture is left as it is; its current frame is taken.

    Raises InputError, which names `option`.
    """
    with _reading(source, option):
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(_file(source)) as picture:
            return _upright(picture)


def first_frames(sources: Iterable[Source]) -> str:
    """A line that says of which pictures only the first of several frames is taken; "" if of none.

    Sources that cannot be read are passed over, and so are opened pictures that stand at a later
    frame.
    """
    found = [(name, frames) for name, frames in map(_frames, sources) if frames > 1]
    if not found:
        return ""
    name, frames = found[0]
    if len(found) == 1:
        return f"{name} has {frames} frames; only the first is used"
    return (
        f"{len(found)} pictures have more than one frame, such as {name}; only the first frame of "
        "each is used"
    )


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
    if len(paths) > 1 or os.path.isdir(paths[0]):  # unlike a Path's, for names of any length
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


def _frames(source: Source) -> tuple[str, int]:
    """What to call a picture, and how many frames it has from the one on that is taken."""
    if isinstance(source, Image.Image):
        several = source.format not in _ONE_PICTURE and source.tell() == 0
        return _called(source) or "an opened picture", getattr(source, "n_frames", 1) * several
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_file(source)) as picture:
                return _called(source) or "an encoded picture", _frames(picture)[1]
    except Exception:  # opening it for use says what is wrong
        return "", 0


def _file(source: Path | bytes) -> Path | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else source


def _called(source: Source) -> str:
    """The file that a picture comes from, as messages name it; "" if there is none."""
    if isinstance(source, bytes):
        return ""
    name = str(getattr(source, "filename", "") if isinstance(source, Image.Image) else source)
    return name if len(name) <= 200 else f"{name[:60]}…"


def _decoded(text: str) -> bytes:
    """The bytes of a picture file in base64, with or without `data:…;base64,` before it."""
    start = _DATA_URL.match(text)
    if start is None and text.startswith("data:"):
        raise InputError(
            f"the data URL {text[:40]}… is not base64; expected data:image/png;base64,…"
        )
    try:
        return base64.b64decode(text[start.end() :] if start else text)
    except binascii.Error as error:
        raise InputError(f"the picture {text[:40]}… is not base64: {error}") from None


def _check_local(path: str, option: str) -> None:
    """Refuse what is written where a file should be: a URL."""
    if _URL.match(path):
        url = re.sub(":/+", "://", path, count=1)  # a Path keeps one slash only
        raise InputError(f"{option} {url}: expected a file; download the picture first")
    if path.startswith("data:"):
        raise InputError(f"{option} {path[:40]}…: expected a file; save the picture in one")


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
    """RGB, upright by its EXIF data; see above for 16-bit greys and transparency."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # Pillow would clip the values
        picture = _eight_bits(picture)
    elif picture.mode in ("I", "F"):
        raise ValueError(f"its {picture.mode} values have no known range; save it with 8 bits")
    return on_white(picture)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16-bit greys, with 8 bits; its transparent grey, if any, becomes alpha."""
    values = np.asarray(picture)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


@contextmanager
def _reading(source: Source, option: str) -> Iterator[None]:
    """Turn any error of Pillow or the file system into one line."""
    name = f"{option} {_called(source)}".rstrip()
    if isinstance(source, Path):
        _check_local(str(source), option)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about a large or odd picture is no error
            yield
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        hint = "; a folder of frames goes with --video" if option == "--image" else ""
        raise InputError(f"{name} is a folder; pass the name of a picture{hint}") from None
    except UnidentifiedImageError:
        hint = _SPLIT_FILMS if option == "--video" else "; convert it to PNG or JPEG"
        raise InputError(f"{name} is not a picture that Pillow can read{hint}") from None
    except Exception as error:  # a decoder may raise anything on a broken file
        reason = (isinstance(error, OSError) and error.strerror) or error or type(error).__name__
        raise InputError(f"{name}: cannot read this picture: {reason}") from None
