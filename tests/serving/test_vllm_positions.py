"""Places of tokens, as either of vLLM's runners asks for them, and the work of the tower."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Stock
from vllm_engines import checkpoint, configure

from vtfast.vllm.model import _batches
from vtfast.vllm.qwen import PrunedQwen25VL
from vtfast.vllm.settings import Settings

# A picture and a clip, in patches, two a side to a token.
GRIDS = {"image": (1, 8, 8), "video": (2, 4, 10)}
TOKENS = (16, 20)
ALL = 3 + 36 + 2


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
    """Token ids, pictures and clips of a prompt whose clip follows its picture at once."""
    ids, features = [7, 7, 7], []
    for (kind, grid), count in zip(GRIDS.items(), counts, strict=True):
        data = {f"{kind}_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
        where = SimpleNamespace(offset=len(ids), length=count)
        features.append(SimpleNamespace(mm_position=where, data=data, modality=kind))
        ids += [getattr(model.config, f"{kind}_token_id")] * count
    return [*ids, 7, 7], features


def carried(model, feature, rows):
    """Embeddings of width 2 that carry the places of some tokens of a picture."""
    places = model.places(model.grid_of(feature))[rows]
    return torch.cat((torch.zeros(len(rows), 2), places // 256, places % 256), 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("chunks", [[(0, ALL)], [(0, 10), (10, 22), (22, ALL)]])
def test_places_are_those_of_stock_where_nothing_is_dropped(model, dtype, chunks):
    """Asked for once, or chunk by chunk, with ids as a tensor and as a list, and never again."""
    ids, features = prompt(model, TOKENS)
    stock, beyond = Stock.get_mrope_input_positions(model, ids, features)
    positions, found = model.get_mrope_input_positions(ids, features)
    assert found == beyond
    rows = map(torch.arange, TOKENS)
    places = [carried(model, *one) for one in zip(features, rows, strict=True)]
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
    rows = torch.tensor([0, 3, 7, 9, 15]), torch.tensor([1, 4, 19])
    positions, _ = model.get_mrope_input_positions(ids, features)
    given = [carried(model, *one) for one in zip(pictures, rows, strict=True)]
    for _ in range(2):  # after a preemption it is done again
        _, positions, found = model.recompute_mrope_positions(ids, given, positions, 0)
    kept = [*range(3), *(rows[0] + 3).tolist(), *(rows[1] + 19).tolist(), 39, 40]
    assert positions.equal(stock[:, kept])
    assert found == beyond + ALL - len(kept)


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
