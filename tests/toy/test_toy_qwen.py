"""What training replaces in the toy Qwen computes what transformers does, at every size."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtfast.toy import lessons, model, prompt, qwen
from vtfast.toy.scene import GRID, Scene
from vtfast.toy.words import IMAGE

SIZES = pytest.mark.parametrize("size", qwen.SIZES, ids=lambda size: "x".join(map(str, size)))


@pytest.fixture(scope="module")
def processor():
    return qwen.build_processor()


@SIZES
def test_training_feeds_the_patches_that_the_processor_makes(processor, size):
    batch = lessons.draw_batch(np.random.default_rng(5), 3, size)
    rng = np.random.default_rng(5)
    pictures = [Scene.sample(rng, size).picture() for _ in range(3)]
    made = processor.image_processor(pictures, return_tensors="pt")
    patches, grid = qwen.as_patches(batch.pixels)
    assert torch.equal(patches, made["pixel_values"])
    assert torch.equal(grid, made["image_grid_thw"])


@SIZES
def test_packed_positions_are_those_of_get_rope_index(size):
    visual = [IMAGE] * (size[0] * size[1] // GRID**2)
    ids = torch.tensor([[*qwen.BEFORE, *visual, *qwen.AFTER, 7, 8]])
    grid = torch.tensor([[1, size[1] // qwen.PATCH, size[0] // qwen.PATCH]])
    untrained = qwen.build_model(layers=1)
    stock, _ = untrained.model.get_rope_index(ids, (ids == IMAGE).int(), image_grid_thw=grid)
    row, _ = lessons.layout(qwen.positions(size))
    assert torch.equal(row[:, : ids.shape[1]], stock[:, 0])


def test_attending_equal_windows_at_once_gives_the_stock_towers_output():
    """Of pictures of several sizes in one call, so with windows of many lengths, in any order."""
    untrained = qwen.build_model(layers=1, seed=2)
    parts = [
        qwen.as_patches(lessons.draw_batch(np.random.default_rng(1), 2, size).pixels)
        for size in qwen.SIZES
    ]
    patches, grid = (torch.cat(part) for part in zip(*parts, strict=True))
    with torch.inference_mode():
        stock = untrained.model.visual(patches, grid_thw=grid).pooler_output
        qwen.prepare_training(untrained)
        at_once = untrained.model.visual(patches, grid_thw=grid).pooler_output
    torch.testing.assert_close(at_once, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((96, 96), (8, 8)),
        ((144, 96), (8, 12)),
        ((30, 30), (8, 8)),
        ((640, 480), (8, 11)),
        ((200, 600), (16, 5)),
    ],
    ids=["smallest", "largest", "tiny", "4:3", "upright"],
)
def test_a_picture_of_any_size_keeps_its_shape_within_the_area_trained_on(processor, size, tokens):
    made = processor.image_processor([Image.new("RGB", size)], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 2 * tokens[0], 2 * tokens[1]]]


def test_the_prompt_has_the_picture_between_its_marks(processor):
    text = prompt(processor, "read the code .")
    assert text == "USER: <vision_start><image><vision_end>\nread the code . ASSISTANT:"
    inputs = processor(images=[Image.new("RGB", (120, 96))], text=text, return_tensors="pt")
    row = [*qwen.BEFORE, *[IMAGE] * 80, *qwen.AFTER]
    assert inputs["input_ids"][0, : len(row)].tolist() == row


def test_the_words_of_the_llavas_keep_their_numbers():
    ours = qwen.build_processor().tokenizer.get_vocab()
    theirs = model.FAMILIES["llava"].build_processor().tokenizer.get_vocab()
    assert theirs.items() <= ours.items()
