"""Pictures and clips of a user: what is read, in which order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtfast.errors import InputError
from vtfast.inputs.pictures import FRAMES_PER_SECOND, evenly, open_picture, read_clip

SHADES = (10, 60, 110, 160, 210)


def grey(shade: int, size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("RGB", size, (shade,) * 3)


def shades(clip) -> list[int]:
    return [int(np.asarray(frame).mean().round()) for frame in clip.frames]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five frames whose names sort differently as text, and two files that are no frames."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, shade in zip((1, 2, 9, 10, 11), SHADES, strict=True):
        grey(shade).save(frames / f"f{number}.png")
    (frames / "notes.txt").write_text("no frame")
    grey(0).save(frames / ".hidden.png")
    return frames


@pytest.fixture
def gif(tmp_path: Path) -> Path:
    first, *others = map(grey, SHADES)
    path = tmp_path / "clip.gif"
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 5), 32768, np.uint16)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (128, 128, 128)


def test_a_picture_without_a_known_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(path)
    with pytest.raises(InputError, match=r"float.tiff.*no known range; save it with 8 bits"):
        open_picture(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_a_picture_of_any_mode_comes_as_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tiff"
    Image.new(mode, (5, 4)).save(path)
    picture = open_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))


def test_a_picture_is_turned_as_its_camera_held_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = open_picture(tmp_path / "turned.png")
    assert turned.size == (4, 6)
    assert turned.getpixel((3, 0)) == (255, 255, 255)


def test_frames_of_a_folder_come_by_number_and_without_other_files(folder: Path) -> None:
    assert shades(read_clip([folder], 16)) == list(SHADES)


def test_frame_files_come_in_the_order_given(folder: Path) -> None:
    files = [folder / f"f{number}.png" for number in (10, 1, 9)]
    assert shades(read_clip(files, 16)) == [160, 10, 110]


def test_an_animation_comes_frame_by_frame_at_its_own_rate(gif: Path) -> None:
    clip = read_clip([gif], 16)
    assert shades(clip) == pytest.approx(SHADES, abs=1)
    assert clip.fps == 10


def test_of_many_frames_some_are_taken_evenly_and_the_rate_falls(folder: Path, gif: Path) -> None:
    assert shades(read_clip([folder], 3)) == [10, 110, 210]
    sampled = read_clip([gif], 2)
    assert shades(sampled) == pytest.approx((10, 210), abs=1)
    assert sampled.fps == pytest.approx(10 * 2 / 5)


def test_a_rate_can_be_given_and_is_2_where_unknown(folder: Path, gif: Path) -> None:
    assert read_clip([folder], 16).fps == FRAMES_PER_SECOND == 2
    assert read_clip([folder], 16, fps=25).fps == 25
    assert read_clip([gif], 16, fps=3).fps == 3


@pytest.mark.parametrize("total", [1, 2, 5, 17, 100])
@pytest.mark.parametrize("most", [1, 2, 3, 16])
def test_even_sampling_takes_distinct_frames_with_both_ends(total: int, most: int) -> None:
    taken = evenly(total, most)
    assert len(taken) == min(total, most)
    assert taken == sorted(set(taken))
    assert taken[0] == 0
    if most > 1:
        assert taken[-1] == total - 1
        gaps = np.diff(taken)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


# What is refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--image \S+nope.png: there is no such file$"):
        open_picture(tmp_path / "nope.png")


def test_a_text_named_png_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"^--image \S+ is not a picture that Pillow can read; "):
        open_picture(tmp_path / "text.png")


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"^--image \S+: cannot read this picture: .*truncated"):
        open_picture(tmp_path / "cut.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey(0).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"cannot read this picture: .*decompression bomb"):
        open_picture(tmp_path / "bomb.png")


def test_a_folder_as_a_picture_is_refused_with_the_option_for_folders(folder: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; .* a folder of frames goes with --video"):
        open_picture(folder)


def test_a_url_is_refused() -> None:
    says = r"^--image https://example.org/cat.png: expected a file; download the picture first"
    with pytest.raises(InputError, match=says):
        open_picture(Path("https://example.org/cat.png"))


@pytest.mark.parametrize("url", ["https://example.org/film.gif", "s3://bucket/film.gif"])
def test_a_url_of_a_video_is_refused_like_one_of_a_picture(url: str) -> None:
    with pytest.raises(InputError, match=rf"^--video {url}: expected a file; download"):
        read_clip([Path(url)], 16)


def test_a_folder_without_pictures_says_how_to_split_a_film(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match="no picture in this folder; split a film into frames"):
        read_clip([tmp_path], 16)


def test_a_film_is_refused_with_the_command_that_splits_it(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match=r"^--video \S+film.mp4 is not .*; split a film into"):
        read_clip([tmp_path / "film.mp4"], 16)


def test_a_single_picture_is_no_clip(folder: Path) -> None:
    with pytest.raises(InputError, match="is a single picture; pass it with --image"):
        read_clip([folder / "f1.png"], 16)


def test_frames_of_different_sizes_are_refused(folder: Path) -> None:
    grey(0, (9, 9)).save(folder / "f12.png")
    with pytest.raises(InputError, match=r"frames of different sizes \(12x8, 9x9\)"):
        read_clip([folder], 16)


def test_a_broken_frame_is_named(folder: Path) -> None:
    (folder / "f3.png").write_text("hello")
    with pytest.raises(InputError, match=r"^--video \S+f3.png is not a picture"):
        read_clip([folder], 16)
