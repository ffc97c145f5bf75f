"""The picture of what a plan kept: panels, titles, and which patches are dimmed."""

import numpy as np
import pytest
from PIL import Image

from vtfast.cli._kept_picture import MOST_ROWS, draw
from vtfast.cli._kept_views import StageView, View
from vtfast.toy.scene import Scene


@pytest.fixture(scope="module")
def figure():
    scene = Scene.from_seed(3).picture()
    stages = (StageView(0, "diversity", tuple(range(0, 64, 2))), StageView(10, "random", (5, 42)))
    return draw([View(scene, (8, 8), stages)], "a heading", "a caption"), scene, stages


def test_each_panel_says_layer_method_and_count(figure) -> None:
    titles = [axes.get_title() for axes in figure[0].axes]
    assert titles[0].endswith("64 visual tokens")
    assert titles[1] == "from layer 0 on: diversity\n32 of 64 kept"
    assert titles[2] == "from layer 10 on: random\n2 of 64 kept"


def test_kept_patches_are_as_in_the_scene_and_dropped_ones_dim(figure) -> None:
    figure, scene, stages = figure
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    pixels = np.asarray(scene).astype(int)
    for axes, stage in zip(figure.axes[1:], stages, strict=True):
        for patch in range(64):
            y, x = divmod(patch, 8)
            column, row = axes.transData.transform((x + 0.55, y + 0.55))
            there = drawn[drawn.shape[0] - 1 - int(row), int(column)]
            given = pixels[int((y + 0.55) * 12), int((x + 0.55) * 12)]
            if patch in stage.kept:
                assert abs(there - given).max() <= 2, (stage, patch)
            else:
                assert there.sum() < 0.2 * given.sum() + 120, (stage, patch)


def view(rows: int, columns: int, stages: int, name: str = View.name) -> View:
    """A scene in a raster of any shape, with less and less of it kept."""
    kept = (tuple(range(max(1, rows * columns // (2 + i)))) for i in range(stages))
    views = tuple(StageView(10 * i, "diversity", k) for i, k in enumerate(kept))
    return View(Scene.from_seed(3).picture(), (rows, columns), views, name)


LAYOUTS = {
    "one stage": [view(8, 8, 1)],
    "two stages": [view(8, 8, 2)],
    "four stages": [view(8, 8, 4)],
    "wide": [view(4, 26, 2)],
    "tall": [view(40, 9, 2)],
    "fine": [view(60, 60, 2)],
    "several": [view(6, 8, 2, f"frames {2 * i + 1}-{2 * i + 2} of 24") for i in range(3)],
    "too many": [view(3, 5, 1, "a picture") for _ in range(12)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_text_of_the_picture_is_clipped_or_overlaps(layout: str) -> None:
    heading = "divprune+random, keep 0.5: 32.0 of 64 visual tokens, averaged over the layers"
    caption = 'dark patches were dropped; the question was "which digit is in the yellow cell ?"'
    figure = draw(LAYOUTS[layout], heading, caption)
    figure.draw_without_rendering()
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
    overlapping = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlapping == []


@pytest.mark.parametrize("layout", ["wide", "tall", "several"])
def test_a_token_is_drawn_square(layout: str) -> None:
    figure = draw(LAYOUTS[layout], "", "")
    for axes, view in zip(figure.axes[::3], LAYOUTS[layout], strict=True):
        box = axes.get_window_extent()
        assert box.width / box.height == pytest.approx(view.grid[1] / view.grid[0])


def test_the_dark_overlay_follows_the_raster_of_its_picture() -> None:
    """Patches count row by row: in a raster of 2 x 3, patch 4 is the middle of the second row."""
    white = Image.new("RGB", (30, 20), "white")
    shown = View(white, (2, 3), (StageView(0, "random", (4,)),))
    figure = draw([shown], "", "")
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    bright = set()
    for patch in range(6):
        y, x = divmod(patch, 3)
        column, row = figure.axes[1].transData.transform((x + 0.55, y + 0.55))
        if drawn[drawn.shape[0] - 1 - int(row), int(column)].sum() > 600:
            bright.add(patch)
    assert bright == {4}


def test_of_many_pictures_the_first_are_shown_and_the_caption_says_so() -> None:
    figure = draw(LAYOUTS["too many"], "heading", "caption")
    assert len(figure.axes) == 2 * MOST_ROWS
    assert figure.texts[1].get_text() == f"caption; the first {MOST_ROWS} of 12 pictures"
