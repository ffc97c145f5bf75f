"""Drawn scenes: pictures whose content is known, with six questions from easy to hard.

A scene is RGB and 96 x 96 unless a larger size is asked for: on a coloured background, three
horizontal bands in random order hold one large shape, a row of two to four small cells with a digit
each, and a code of three characters. In a larger picture the same objects have more room.
A `Scene` holds meaning and layout, so the picture, the answers and the per-patch glyph labels that
help training all follow from one value. The glyphs are Pillow's built-in font (Pillow ≥ 10.1 with
FreeType); no system font is needed.

    scene = Scene.from_seed(7)
    scene.picture()                       # PIL image, 96 x 96
    scene.question("code")                # ("read the code .", "A P 6")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtfast.errors import InputError
from vtfast.toy.tasks import TASKS

SIDE = 96  # of the smallest picture, and the default
GRID = 12  # sides are multiples of this: one visual token of the bundled models
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "gray": (128, 128, 128),
    "pink": (250, 160, 200),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
DIGITS = "0123456789"
CODE_GLYPHS = (
    "ACEFHKLMNPRTUWXY123456789"  # without 0 D J V, which a 20 pixel glyph confuses with others
)
GLYPHS = "".join(sorted(set(DIGITS + CODE_GLYPHS)))
CODE_LENGTH = 3

_BAND_HEIGHTS = {"shape": 40, "code": 26, "cells": 26}
_CELL_WIDTH, _CELL_GAP, _CELL_FONT = 20, 3, 17
_NOISE = 6.0
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside
Size = tuple[int, int]  # width, height, as Pillow has it
SQUARE: Size = (SIDE, SIDE)


@dataclass(frozen=True)
class Cell:
    """One small box: its colour and the digit written in it."""

    colour: str
    digit: str


@dataclass(frozen=True)
class Layout:
    """Where things are, in pixels; nothing here changes an answer."""

    shape_top: int
    code_top: int
    cells_top: int
    shape_x: int
    shape_radius: int
    cells_x: int
    code_x: int
    code_font: int
    code_shifts: tuple[int, ...]
    noise_seed: int
    size: Size = SQUARE


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `asked` is the index of the cell that the digit question is about."""

    background: str
    shape: str
    shape_colour: str
    cells: tuple[Cell, ...]
    code: str
    asked: int
    layout: Layout

    @classmethod
    def sample(cls, rng: np.random.Generator, size: Size = SQUARE) -> "Scene":
        """A random scene on a picture of `size`; it advances `rng`.

        Raises InputError for a size that `vtfast.toy.scenes` refuses.
        """
        _check_size(size)
        names = [str(name) for name in rng.permutation(list(COLOURS))]
        background, cell_colours = names[0], names[1:]
        shape_colour = names[int(rng.integers(1, len(names)))]
        cell_colours = [cell_colours[i] for i in rng.permutation(len(cell_colours))]
        count = int(rng.integers(2, 5))
        cells = tuple(Cell(c, DIGITS[rng.integers(10)]) for c in cell_colours[:count])
        code = "".join(CODE_GLYPHS[i] for i in rng.integers(len(CODE_GLYPHS), size=CODE_LENGTH))
        shape = SHAPES[rng.integers(len(SHAPES))]
        asked = int(rng.integers(count))
        layout = _sample_layout(rng, count, size)
        return cls(background, shape, shape_colour, cells, code, asked, layout)

    @classmethod
    def from_seed(cls, seed: int, size: Size = SQUARE) -> "Scene":
        """The scene number `seed` on a picture of `size`: always the same one."""
        return cls.sample(np.random.default_rng(_checked("seed", seed)), size)

    def question(self, task: str, cell: int | None = None) -> tuple[str, str]:
        """The question of `task` about this scene and its answer, as space-separated words.

        `cell` asks the digit question about another cell than `asked`. Raises InputError for an
        unknown task.
        """
        asked = self.cells[self.asked if cell is None else cell]
        match _checked_task(task):
            case "background":
                return "what colour is the background ?", self.background
            case "shape_colour":
                return "what colour is the main shape ?", self.shape_colour
            case "shape":
                return "what is the main shape ?", self.shape
            case "count":
                return "how many cells are there ?", str(len(self.cells))
            case "digit":
                return f"which digit is in the {asked.colour} cell ?", asked.digit
            case _:
                return "read the code .", " ".join(self.code)

    def pixels(self) -> np.ndarray:
        """The picture as uint8 [height, width, 3]."""
        width, height = self.layout.size
        image = Image.new("RGB", (width, height), COLOURS[self.background])
        pen = ImageDraw.Draw(image)
        self._draw_shape(pen)
        for cell, x in zip(self.cells, self._cell_lefts(), strict=True):
            top, bottom = (
                self.layout.cells_top + 2,
                self.layout.cells_top + _BAND_HEIGHTS["cells"] - 3,
            )
            pen.rectangle((x, top, x + _CELL_WIDTH - 1, bottom), fill=COLOURS[cell.colour])
        canvas = np.asarray(image).astype(np.float32)
        for glyph, font, (left, top, right, bottom), ground in self._glyphs():
            alpha = _glyph_mask(glyph, font)[..., None]
            ink = np.array(_BLACK if _luminance(ground) > 110 else _WHITE, np.float32)
            region = canvas[top:bottom, left:right]
            region += (ink - region) * alpha
        noise = np.random.default_rng(self.layout.noise_seed).standard_normal(
            (height, width, 1), np.float32
        )
        return np.clip(canvas + _NOISE * noise, 0, 255).astype(np.uint8)

    def picture(self) -> Image.Image:
        """The picture as an RGB image."""
        return Image.fromarray(self.pixels())

    def glyph_labels(self, patch: int) -> np.ndarray:
        """Which glyph covers the centre of each patch; training's auxiliary target.

        `patch` is a side in pixels that divides width and height. Returns int64
        [(height / patch) * (width / patch)] in raster order: 0 = no glyph, else 1 + its rank in
        `GLYPHS`. A glyph's box is grown by two pixels.
        """
        x, y = ((np.arange(side // patch) + 0.5) * patch for side in self.layout.size)
        labels = np.zeros((len(y), len(x)), np.int64)
        for glyph, _, (left, top, right, bottom), _ in self._glyphs():
            columns = (x > left - 2) & (x < right + 2)
            rows = (y > top - 2) & (y < bottom + 2)
            labels[np.ix_(rows, columns)] = 1 + GLYPHS.index(glyph)
        return labels.reshape(-1)

    def _cell_lefts(self) -> list[int]:
        return [self.layout.cells_x + k * (_CELL_WIDTH + _CELL_GAP) for k in range(len(self.cells))]

    def _glyphs(self) -> list[tuple[str, int, Box, str]]:
        """Every glyph of the picture: character, font size, box, and the colour it stands on."""
        placed = []
        middle = self.layout.cells_top + _BAND_HEIGHTS["cells"] / 2
        for cell, x in zip(self.cells, self._cell_lefts(), strict=True):
            box = self._box(cell.digit, _CELL_FONT, x + _CELL_WIDTH / 2, middle)
            placed.append((cell.digit, _CELL_FONT, box, cell.colour))
        font, middle = self.layout.code_font, self.layout.code_top + _BAND_HEIGHTS["code"] / 2
        for k, (glyph, shift) in enumerate(zip(self.code, self.layout.code_shifts, strict=True)):
            box = self._box(glyph, font, self.layout.code_x + k * (font - 1), middle + shift)
            placed.append((glyph, font, box, self.background))
        return placed

    def _box(self, glyph: str, font: int, x: float, y: float) -> Box:
        """The box of a glyph centred at (x, y), moved into the picture where it would stick out."""
        height, width = _glyph_mask(glyph, font).shape
        left = min(max(round(x - width / 2), 0), self.layout.size[0] - width)
        top = min(max(round(y - height / 2), 0), self.layout.size[1] - height)
        return left, top, left + width, top + height

    def _draw_shape(self, pen: ImageDraw.ImageDraw) -> None:
        x, y, r = (
            self.layout.shape_x,
            self.layout.shape_top + _BAND_HEIGHTS["shape"] // 2,
            self.layout.shape_radius,
        )
        fill = COLOURS[self.shape_colour]
        match self.shape:
            case "circle":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            case "square":
                pen.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
            case "triangle":
                pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
            case "diamond":
                pen.polygon([(x, y - r), (x - r, y), (x, y + r), (x + r, y)], fill=fill)
            case _:
                arm = r // 3
                pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
                pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def scene_list(n: int, seed: int, task: str, sizes: Sequence[Size] = (SQUARE,)) -> list[Scene]:
    """The scenes of `vtfast.toy.scenes(n, seed, task, sizes)`, with the same errors."""
    number = TASKS.index(_checked_task(task))
    _checked("seed", seed)
    if not sizes:
        raise InputError("sizes is empty; pass at least one (width, height), as in ((96, 96),)")
    return [
        Scene.sample(np.random.default_rng([seed, number, i]), sizes[i % len(sizes)])
        for i in range(_checked("n", n))
    ]


def _sample_layout(rng: np.random.Generator, cells: int, size: Size) -> Layout:
    width, height = size
    top, tops = int(rng.integers(0, height - sum(_BAND_HEIGHTS.values()) + 1)), {}
    for band in (list(_BAND_HEIGHTS)[i] for i in rng.permutation(len(_BAND_HEIGHTS))):
        tops[band] = top
        top += _BAND_HEIGHTS[band]
    radius = int(rng.integers(13, 19))
    font = int(rng.integers(19, 23))
    step = font - 1
    return Layout(
        shape_top=tops["shape"],
        code_top=tops["code"],
        cells_top=tops["cells"],
        shape_x=int(rng.integers(radius + 2, width - radius - 2)),
        shape_radius=radius,
        cells_x=int(rng.integers(1, width - cells * (_CELL_WIDTH + _CELL_GAP))),
        code_x=int(rng.integers(step // 2 + 1, width - step * CODE_LENGTH + step // 2)),
        code_font=font,
        code_shifts=tuple(int(shift) for shift in rng.integers(-1, 2, size=CODE_LENGTH)),
        noise_seed=int(rng.integers(2**31)),
        size=size,
    )


@cache
def _glyph_mask(glyph: str, font: int) -> np.ndarray:
    """Opacity of a glyph in its tight box: float32 [height, width] in [0, 1]."""
    image = Image.new("L", (2 * font, 2 * font), 0)
    face = ImageFont.load_default(size=font)
    ImageDraw.Draw(image).text((font // 2, font // 2), glyph, fill=255, font=face, stroke_width=1)
    return np.asarray(image.crop(image.getbbox()), np.float32) / 255


def _luminance(colour: str) -> float:
    red, green, blue = COLOURS[colour]
    return 0.3 * red + 0.6 * green + 0.1 * blue


def _checked_task(task: str) -> str:
    if task not in TASKS:
        raise InputError(
            f"task={task!r} is not a task of the drawn scenes; choose one of {', '.join(TASKS)}"
        )
    return task


def _checked(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(
            f"{name}={value!r} but a non-negative int is expected; pass for example {name}=8"
        )
    return value


def _check_size(size: Size) -> None:
    if len(size) != 2 or any(side < SIDE or side % GRID for side in size):
        raise InputError(
            f"size={size!r} but (width, height) is expected, multiples of {GRID} pixels, at least "
            f"{SIDE}; pass for example ({SIDE + 2 * GRID}, {SIDE})"
        )
