"""Places of tokens, as either of vLLM's runners asks for them, and the work of the tower."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Stock
from vllm_engines import checkpoint, configure

from vtfast.vllm.model import _batches
from vtfast.vllm.qwen import PrunedQwen25VL
from vtfast.vllm.settings import Settings

GRIDS = ((1, 8, 8), (1, 4, 10))  # in patches, two a side to a token
TOKENS = (16, 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Without weights: places need none."""
    made = PrunedQwen25VL.__new__(PrunedQwen25VL)
    made.config = configure(
        checkpoint("qwen", tmp_path_factory.getbasetemp()), None
    ).model_config.hf_config
    made.settings = Settings.read({"keep": 1.0}, 8, "qwen2_5_vl")
    return made


def prompt(model, counts):
    """Token ids and pictures of a prompt whose second picture follows the first one at once."""
    image, ids, features = model.config.image_token_id, [7, 7, 7], []
    for grid, count in zip(GRIDS, counts, strict=True):
        data = {"image_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
        where = SimpleNamespace(offset=len(ids), length=count)
        features.append(SimpleNamespace(mm_position=where, data=data, modality="image"))
        ids += [image] * count
    return [*ids, 7, 7], features


def carried(model, grid, rows):
    """Embeddings of width 2 that carry the places of some tokens of a picture."""
    places = model.places((1, grid[1] // 2, grid[2] // 2, 1.0))[rows]
    return torch.cat((torch.zeros(len(rows), 2), places // 256, places % 256), 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("chunks", [[(0, 31)], [(0, 10), (10, 22), (22, 31)]])
def test_places_are_those_of_stock_where_nothing_is_dropped(model, dtype, chunks):
    """Asked for once, or chunk by chunk, with ids as a tensor and as a list, and never again."""
    ids, features = prompt(model, TOKENS)
    stock, beyond = Stock.get_mrope_input_positions(model, ids, features)
    positions, found = model.get_mrope_input_positions(ids, features)
    assert found == beyond
    places = [carried(model, grid, torch.arange(n)) for grid, n in zip(GRIDS, TOKENS, strict=True)]
    for first, last in chunks:
        given = []
        for feature, own in zip(features, places, strict=True):
            start = feature.mm_position.offset
            part = own[max(0, first - start) : max(0, last - start)]
            given += [part] if len(part) else []
        asked = torch.tensor(ids, dtype=dtype) if dtype == torch.int32 else ids
        out, positions, found = model.recompute_mrope_positions(asked, given, positions, first)
        assert all(one.shape[1] == 2 for one in out)
    assert positions.equal(stock)
    assert found == beyond


def test_tokens_that_stay_have_the_places_that_they_had(model):
    ids, features = prompt(model, (5, 3))
    whole, pictures = prompt(model, TOKENS)
    stock, beyond = Stock.get_mrope_input_positions(model, whole, pictures)
    rows = torch.tensor([0, 3, 7, 9, 15]), torch.tensor([1, 4, 9])
    positions, _ = model.get_mrope_input_positions(ids, features)
    given = [carried(model, grid, own) for grid, own in zip(GRIDS, rows, strict=True)]
    for _ in range(2):  # after a preemption it is done again
        _, positions, found = model.recompute_mrope_positions(ids, given, positions, 0)
    kept = [*range(3), *(rows[0] + 3).tolist(), *(rows[1] + 19).tolist(), 29, 30]
    assert positions.equal(stock[:, kept])
    assert found == beyond + 31 - len(kept)


@pytest.mark.parametrize(
    ("tokens", "runs"),
    [
        ([10] * 4, [(0, 4)]),
        ([10] * 5, [(0, 4), (4, 5)]),
        ([99, 1, 1], [(0, 1), (1, 3)]),
        ([1, 99], [(0, 1), (1, 2)]),
        ([7], [(0, 1)]),
    ],
)
def test_the_tower_gets_no_more_than_was_measured(tokens, runs):
    """40 tokens, counted before any pruning; a larger picture alone."""
    assert list(_batches(tokens, 40)) == runs
