"""The picture of what a plan kept: panels, titles, and which patches are dimmed."""

import numpy as np
import pytest

from vtfast.picture import draw
from vtfast.toy.scene import Scene
from vtfast.views import StageView, View


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


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_no_text_of_the_picture_is_clipped_or_overlaps(stages: int) -> None:
    views = tuple(StageView(10 * i, "diversity", tuple(range(40 - i))) for i in range(stages))
    heading = "divprune+random, keep 0.5: 32.0 of 64 visual tokens, averaged over the layers"
    caption = 'dark patches were dropped; the question was "which digit is in the yellow cell ?"'
    figure = draw([View(Scene.from_seed(3).picture(), (8, 8), views)], heading, caption)
    figure.canvas.draw()
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
    overlapping = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlapping == []
