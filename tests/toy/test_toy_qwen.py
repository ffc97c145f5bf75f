"""What training replaces in the toy Qwens computes what transformers does, at every size."""

import numpy as np
import pytest
import torch
from PIL import Image

from vtfast.errors import InputError
from vtfast.toy import lessons, model, prompt, qwen
from vtfast.toy.scene import GRID, Scene
from vtfast.toy.words import IMAGE

SIZES = pytest.mark.parametrize("size", qwen.SIZES, ids=lambda size: "x".join(map(str, size)))
QWENS = {"qwen": qwen.QWEN25, "qwen3": qwen.QWEN3}
each_family = pytest.mark.parametrize("family", QWENS.values(), ids=QWENS)


@pytest.fixture(scope="module", params=QWENS.values(), ids=QWENS)
def processor(request):
    return request.param.build_processor()


@SIZES
def test_training_feeds_the_patches_that_the_processor_makes(processor, size):
    batch = lessons.draw_batch(np.random.default_rng(5), 3, size)
    rng = np.random.default_rng(5)
    pictures = [Scene.sample(rng, size).picture() for _ in range(3)]
    made = processor.image_processor(pictures, return_tensors="pt")
    patches, grid = qwen.as_patches(batch.pixels)
    assert torch.equal(patches, made["pixel_values"])
    assert torch.equal(grid, made["image_grid_thw"])


@each_family
@SIZES
def test_packed_positions_are_those_of_get_rope_index(family, size):
    visual = [IMAGE] * (size[0] * size[1] // GRID**2)
    ids = torch.tensor([[*family.BEFORE, *visual, *family.AFTER, 7, 8]])
    grid = torch.tensor([[1, size[1] // qwen.PATCH, size[0] // qwen.PATCH]])
    untrained = family.build_model(layers=1)
    stock, _ = untrained.model.get_rope_index(ids, (ids == IMAGE).int(), image_grid_thw=grid)
    row, _ = lessons.layout(family.positions(size))
    assert torch.equal(row[:, : ids.shape[1]], stock[:, 0])


@each_family
def test_attending_equal_windows_at_once_gives_the_stock_towers_output(family):
    """Of pictures of several sizes in one call, so with windows of many lengths, in any order."""
    untrained = family.build_model(layers=1, seed=2)
    parts = [
        qwen.as_patches(lessons.draw_batch(np.random.default_rng(1), 2, size).pixels)
        for size in qwen.SIZES
    ]
    patches, grid = (torch.cat(part) for part in zip(*parts, strict=True))
    with torch.inference_mode():
        stock = _all_of(untrained.model.visual(patches, grid_thw=grid))
        family.prepare_training(untrained)
        at_once = _all_of(untrained.model.visual(patches, grid_thw=grid))
    torch.testing.assert_close(at_once, stock, rtol=1e-4, atol=1e-5)


def _all_of(tower):
    return torch.stack([tower.pooler_output, *getattr(tower, "deepstack_features", ())])


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
    row = [*qwen.QWEN25.BEFORE, *[IMAGE] * 80, *qwen.QWEN25.AFTER]
    assert inputs["input_ids"][0, : len(row)].tolist() == row


def test_clips_are_refused_where_the_model_reads_them_in_another_way():
    clip = [[Image.new("RGB", (96, 96))] * 2]
    with pytest.raises(InputError, match="takes no clips; pass pictures"):
        qwen.QWEN3.build_processor()(videos=clip, text="<video>")


def test_the_words_of_the_llavas_keep_their_numbers(processor):
    ours = processor.tokenizer.get_vocab()
    theirs = model.FAMILIES["llava"].build_processor().tokenizer.get_vocab()
    assert theirs.items() <= ours.items()
