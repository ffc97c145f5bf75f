"""Drawn scenes: the same every time, and the answer is what the picture shows.

The picture is read back from its pixels by rules that share nothing with the drawing.
"""

import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest

from vtfast import toy
from vtfast.errors import InputError
from vtfast.toy.scene import COLOURS, GLYPHS, GRID, SHAPES, scene_list
from vtfast.toy.words import WORDS


def as_bytes(result):
    pictures, questions, answers = result
    return [picture.tobytes() for picture in pictures], questions, answers


def nearest_colour(pixels):
    """Names of the palette colours nearest to `pixels` [..., 3]."""
    palette = np.array(list(COLOURS.values()), np.float32)
    distance = np.abs(pixels[..., None, :].astype(np.float32) - palette).sum(-1)
    return np.array(list(COLOURS))[distance.argmin(-1)]


@pytest.mark.parametrize("task", toy.TASKS)
def test_scenes_are_the_same_every_time(task):
    assert as_bytes(toy.scenes(4, 5, task)) == as_bytes(toy.scenes(4, 5, task))


@pytest.mark.parametrize("task", toy.TASKS)
def test_a_longer_list_of_scenes_begins_with_the_shorter_one(task):
    longer = as_bytes(toy.scenes(7, 5, task))
    assert as_bytes(toy.scenes(3, 5, task)) == tuple(part[:3] for part in longer)


def test_seed_and_task_choose_the_scenes():
    drawn = [scene_list(5, seed, task) for seed in (0, 1) for task in toy.TASKS]
    assert len({scene for scenes in drawn for scene in scenes}) == 5 * len(drawn)


def test_pictures_are_96_pixel_rgb():
    picture, *_ = toy.scenes(1, 0, "code")[0]
    assert (picture.size, picture.mode) == ((96, 96), "RGB")


def test_96_pixel_scenes_never_change():
    """Checkpoints and every figure measured with them belong to these very pixels.

    Should another Pillow or numpy draw other ones, the figures are no longer comparable either.
    """
    seen = hashlib.sha256()
    for task in toy.TASKS:
        for scene in scene_list(20, 7, task):
            seen.update(scene.pixels().tobytes())
            seen.update(" ".join(scene.question(task)).encode())
            seen.update(scene.glyph_labels(GRID).tobytes())
    assert seen.hexdigest() == "69a96f7e74b56e619ddd7cfe51383cd906ea4975d5579cf0794b214ad76b567a"


def test_sizes_take_turns():
    pictures, *_ = toy.scenes(5, 0, "code", sizes=((96, 96), (144, 108)))
    assert [picture.size for picture in pictures] == [
        *((96, 96), (144, 108), (96, 96), (144, 108), (96, 96))
    ]


def test_a_scene_depends_on_its_own_size_alone():
    among_others = toy.scenes(4, 3, "code", sizes=((96, 96), (120, 96)))
    alone = toy.scenes(4, 3, "code", sizes=((120, 96),))
    assert as_bytes(alone)[0][1::2] == as_bytes(among_others)[0][1::2]


def test_larger_pictures_use_their_room():
    places = [scene.layout for scene in scene_list(200, 1, "code", sizes=((144, 120),))]
    bottoms = [max(p.shape_top + 40, p.code_top + 26, p.cells_top + 26) for p in places]
    assert 116 <= max(bottoms) <= 120
    assert 104 <= max(p.shape_x for p in places) < 144


def test_no_scenes_are_three_empty_lists():
    assert toy.scenes(0, 0, "code") == ([], [], [])


def test_the_background_answer_is_the_most_frequent_colour():
    for scene in scene_list(60, 1, "background"):
        (most, _), *_ = Counter(nearest_colour(scene.pixels()).flat).most_common()
        assert scene.question("background")[1] == most


def test_the_shape_colour_answer_is_the_colour_at_the_shapes_centre():
    for scene in scene_list(60, 1, "shape_colour"):
        y, x = scene.layout.shape_top + 20, scene.layout.shape_x
        patch = nearest_colour(scene.pixels()[y - 3 : y + 4, x - 3 : x + 4])
        assert set(patch.flat) == {scene.question("shape_colour")[1]}


def test_the_shape_answer_is_the_outline_drawn():
    # Filled at (0.85, 0.85), (0.85, -0.85), (0.6, 0.6), (0.45, 0.45) radii from the centre?
    outlines = {
        (False, False, True, True): "circle",
        (True, True, True, True): "square",
        (True, False, True, True): "triangle",
        (False, False, False, True): "diamond",
        (False, False, False, False): "cross",
    }
    asked = set()
    for scene in scene_list(60, 1, "shape"):
        names, radius = nearest_colour(scene.pixels()), scene.layout.shape_radius
        y, x = scene.layout.shape_top + 20, scene.layout.shape_x
        probes = ((0.85, 0.85), (0.85, -0.85), (0.6, 0.6), (0.45, 0.45))
        at = [(round(y + down * radius), round(x + right * radius)) for right, down in probes]
        filled = tuple(bool(names[place] == scene.shape_colour) for place in at)
        assert scene.question("shape")[1] == outlines[filled]
        asked.add(outlines[filled])
    assert asked == set(SHAPES)


def test_the_count_answer_is_the_number_of_cells_drawn():
    for scene in scene_list(60, 1, "count"):
        row = nearest_colour(scene.pixels()[scene.layout.cells_top + 3])  # above the digits
        runs = [row[i] for i in range(96) if i == 0 or row[i] != row[i - 1]]
        cells = [colour for colour in runs if colour != scene.background]
        assert scene.question("count")[1] == str(len(cells))
        assert cells == [cell.colour for cell in scene.cells]


@pytest.mark.parametrize("part", ["digit", "code"])
def test_another_glyph_changes_its_answer_and_its_band_of_the_picture_only(part):
    for scene in scene_list(20, 1, part):
        if part == "digit":
            cells = list(scene.cells)
            digit = str((int(cells[scene.asked].digit) + 1) % 10)
            cells[scene.asked] = dataclasses.replace(cells[scene.asked], digit=digit)
            other, top = dataclasses.replace(scene, cells=tuple(cells)), scene.layout.cells_top
        else:
            glyph = "A" if scene.code[1] != "A" else "X"
            code = scene.code[0] + glyph + scene.code[2]
            other, top = dataclasses.replace(scene, code=code), scene.layout.code_top
        assert other.question(part)[1] != scene.question(part)[1]
        rows = np.flatnonzero((other.pixels() != scene.pixels()).any((1, 2)))
        assert len(rows) > 0
        assert top <= rows.min() <= rows.max() < top + 26


def test_the_digit_question_names_the_cell_it_is_about():
    for scene in scene_list(20, 1, "digit"):
        for k, cell in enumerate(scene.cells):
            asked = f"which digit is in the {cell.colour} cell ?"
            assert scene.question("digit", cell=k) == (asked, cell.digit)


def test_every_word_of_every_question_and_answer_has_a_token():
    words = {
        w for t in toy.TASKS for s in scene_list(50, 2, t) for w in " ".join(s.question(t)).split()
    }
    assert words <= set(WORDS)


def test_glyph_labels_name_the_glyphs_of_the_scene_but_for_a_narrow_1():
    for scene in scene_list(20, 1, "code", sizes=((96, 96), (144, 108))):
        seen = {GLYPHS[i - 1] for i in scene.glyph_labels(GRID) if i}
        written = set(scene.code) | {cell.digit for cell in scene.cells}
        assert written - {"1"} <= seen <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, "smell"), "task='smell' is not a task"),
        ((-1, 0, "code"), "n=-1 but"),
        ((1, 0.5, "code"), "seed=0.5 but"),
        ((True, 0, "code"), "n=True but"),
        ((1, 0, "code", ()), "sizes is empty"),
        ((1, 0, "code", ((84, 96),)), r"size=\(84, 96\) but .* at least 96"),
        ((1, 0, "code", ((96, 100),)), r"size=\(96, 100\) but .* multiples of 12"),
        ((1, 0, "code", ((96, 96, 3),)), r"size=\(96, 96, 3\) but \(width, height\)"),
    ],
    ids=["task", "negative", "float", "bool", "no size", "small", "off grid", "three sides"],
)
def test_bad_scene_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        toy.scenes(*arguments)
