"""One way to read a picture: transparency, 16 bits, rotation and frames, from any source."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vtfast.errors import InputError
from vtfast.inputs.pictures import first_frames, open_picture, picture_source, read_clip

BLACK, GREY, WHITE = (0, 0, 0), (127, 127, 127), (255, 255, 255)
# A black pixel that is opaque, and one that is transparent.
INK, GLASS = (0, 0, 0, 255), (0, 0, 0, 0)


def ink_and_glass(mode: str = "RGBA") -> Image.Image:
    picture = Image.new("RGBA", (2, 1), INK)
    picture.putpixel((1, 0), GLASS)
    return picture.convert(mode)


def pixels(picture: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in pixel) for row in np.asarray(picture) for pixel in row]


def stored(picture: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """The picture as it is read again from a file of a kind."""
    file = BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


def greys(*values: int, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("P", (len(colours), 1))
    picture.putpalette([value for colour in colours for value in colour])
    picture.putdata(range(len(colours)))
    return picture


# A black pixel, and a second one that is transparent, in every mode that can say so.
TRANSPARENT: dict[str, Callable[[], Image.Image]] = {
    "RGBA": lambda: stored(ink_and_glass()),
    "RGBA in WebP": lambda: stored(ink_and_glass(), "WEBP", lossless=True, exact=True),
    "RGBA in TIFF": lambda: stored(ink_and_glass(), "TIFF"),
    "LA": lambda: stored(ink_and_glass("LA")),
    "La": lambda: ink_and_glass("LA").convert("La"),
    "RGBa": lambda: ink_and_glass("RGBa"),
    "PA": lambda: ink_and_glass("PA"),
    "a palette with one clear entry": lambda: stored(palette(BLACK, BLACK), transparency=1),
    "a palette with an alpha of each": lambda: stored(
        palette(BLACK, BLACK), transparency=b"\xff\x00"
    ),
    "a GIF": lambda: stored(palette(BLACK, BLACK), "GIF", transparency=1, optimize=False),
    "a clear grey": lambda: stored(greys(0, 9), transparency=9),
    "a clear grey of 16 bits": lambda: stored(
        greys(0, 40_000, dtype=np.uint16), transparency=40000
    ),
    "a clear white of 1 bit": lambda: stored(greys(0, 255).convert("1"), transparency=1),
    "a clear colour": lambda: stored(greys(0, 9).convert("RGB"), transparency=(9, 9, 9)),
}


@pytest.mark.parametrize("made", TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_is_on_white(made: Callable[[], Image.Image]) -> None:
    assert pixels(open_picture(made())) == [BLACK, WHITE]


def test_what_is_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert pixels(open_picture(tmp_path / "half.png")) == [GREY]


def test_frames_of_a_clip_are_on_white_too(tmp_path: Path) -> None:
    for number in range(2):
        ink_and_glass().save(tmp_path / f"{number}.png")
    assert [pixels(frame) for frame in read_clip([tmp_path], 2).frames] == [[BLACK, WHITE]] * 2


def test_an_opaque_picture_keeps_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for mode in ("RGB", "RGBA"):
        picture = Image.fromarray(noise).convert(mode)
        assert np.array_equal(np.asarray(open_picture(picture)), noise)


# An opened picture and its file


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)).save(path, exif=exif)


FILES: dict[str, Callable[[Path], object]] = {
    "deep.png": lambda path: greys(1, 30_000, 65_535, dtype=np.uint16).save(path),
    "deep.tiff": lambda path: greys(1, 30_000, 65_535, dtype=np.uint16).save(path),
    "turned.jpg": _turned,
    "turned.png": _turned,
    "turned.webp": _turned,
    "glass.png": lambda path: ink_and_glass().save(path),
    "glass.gif": lambda path: palette(BLACK, BLACK).save(path, transparency=1, optimize=False),
    "ink.jpg": lambda path: Image.new("CMYK", (4, 4), (0, 99, 0, 0)).save(path),
}


@pytest.mark.parametrize("name", FILES)
def test_an_opened_picture_is_read_like_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    FILES[name](path)
    read = open_picture(path)
    assert read.mode == "RGB"
    with Image.open(path) as opened:
        for source in (opened, path.read_bytes()):
            again = open_picture(source)
            assert again.size == read.size
            assert again.tobytes() == read.tobytes()


def test_reading_an_opened_picture_leaves_it_as_it_is() -> None:
    picture = ink_and_glass()
    first = open_picture(picture).tobytes()
    assert (picture.mode, picture.getpixel((1, 0))) == ("RGBA", GLASS)
    assert open_picture(picture).tobytes() == first


def test_an_opened_picture_without_a_known_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"^picture: cannot read this picture: its F values"):
        open_picture(Image.new("F", (2, 2)), "picture")


# Several frames


def animated(path: Path) -> Path:
    first, *others = (Image.new("RGB", (8, 8), (shade,) * 3) for shade in (10, 90, 200))
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_a_picture_of_which_only_the_first_frame_is_taken_is_named(
    name: str, tmp_path: Path
) -> None:
    path = animated(tmp_path / name)
    assert first_frames([path]) == f"{path} has 3 frames; only the first is used"
    with Image.open(path) as opened:
        assert first_frames([opened]) == first_frames([path])
    assert pixels(open_picture(path))[0] == pytest.approx((10,) * 3, abs=2)


def test_several_such_pictures_are_one_line(tmp_path: Path) -> None:
    paths = [animated(tmp_path / f"{i}.gif") for i in range(2)]
    assert first_frames(paths) == (
        f"2 pictures have more than one frame, such as {paths[0]}; only the first frame of each is "
        "used"
    )


def test_nothing_is_said_of_other_pictures(tmp_path: Path) -> None:
    """An MPO, as phones write them, is a photograph with previews of it."""
    photograph = Image.new("RGB", (8, 8))
    photograph.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[photograph])
    (tmp_path / "broken.png").write_text("no picture")
    paths = [tmp_path / name for name in ("phone.jpg", "broken.png", "gone.png")]
    with Image.open(animated(tmp_path / "a.gif")) as later:
        later.seek(1)
        assert first_frames([later, photograph, *paths]) == ""


# What may name a picture


def test_a_data_url_and_base64_are_read_as_the_file_they_hold(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    for name, kind in (("a.png", "png"), ("a.jpg", "jpeg"), ("a.webp", "webp")):
        Image.fromarray(noise).save(tmp_path / name)
        written = base64.b64encode((tmp_path / name).read_bytes()).decode()
        for text in (written, f"data:image/{kind};base64,{written}"):
            read = open_picture(picture_source(text, Path("elsewhere")))
            assert read.tobytes() == open_picture(tmp_path / name).tobytes()


def test_a_path_is_relative_to_the_folder_unless_it_is_absolute(tmp_path: Path) -> None:
    assert picture_source("a.png", tmp_path) == tmp_path / "a.png"
    assert picture_source("/b/a.png", tmp_path) == Path("/b/a.png")
    # It begins as base64 of a JPEG does, and is a path all the same.
    assert picture_source("/9j/" + "a" * 80 + ".png") == Path("/9j/" + "a" * 80 + ".png")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("https://a.org/b.png", "picture https://a.org/b.png: expected a file; download the pict"),
        ("s3://bucket/b.png", "picture s3://bucket/b.png: expected a file; download the picture"),
        (Path("https://a.org/b.png"), "picture https://a.org/b.png: expected a file; download"),
        (
            np.zeros((4, 4, 3)),
            "got numpy.ndarray as a picture; make a picture of it: PIL.Image.fromarr",
        ),
        (
            torch.zeros(3, 4, 4),
            "got torch.Tensor as a picture; make a picture of it: PIL.Image.fromarr",
        ),
        (7, "got int as a picture; pass a file or an opened picture"),
        ("data:image/svg+xml,%3Csvg", "is not base64; expected data:image/png;base64,"),
        ("data:image/png;base64,abc", r"^the picture data:image/png;base64,abc… is not base64: "),
    ],
    ids=["url", "bucket", "url as path", "array", "tensor", "number", "no base64", "bad base64"],
)
def test_what_cannot_name_a_picture_is_refused_with_what_to_do(value: object, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        picture_source(value)
    assert "\n" not in str(caught.value)
