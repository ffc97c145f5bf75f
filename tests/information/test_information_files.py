"""Files of vtfast 0.1 can be read, with the values that were saved.

`samples_0_1` was written by that release on the bundled toy-llava-small and four scenes; its logs
stop after two of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from toy_scores import bundled

from vtfast import Plan, information
from vtfast.errors import InputError
from vtfast.information import Horizon, InformationMap, Sweep
from vtfast.toy.evaluate import dataset

SAMPLES = Path(__file__).parent / "samples_0_1"
HOW = {"window": 4, "batch": 2, "progress": False}
FILES = {"horizon.json": Horizon, "map.json": InformationMap, "sweep.json": Sweep}


def holds(new, old):
    """Whether every value of the old record is in the new one, which may have more fields."""
    if isinstance(old, dict):
        return all(name in new and holds(new[name], part) for name, part in old.items())
    if isinstance(old, list):
        return len(new) == len(old) and all(map(holds, new, old))
    return new == old


@pytest.mark.parametrize("name", FILES)
def test_a_result_of_0_1_is_read_and_saved_as_it_was(name, tmp_path):
    found = FILES[name].load(SAMPLES / name)
    found.save(tmp_path / name)
    saved = json.loads((tmp_path / name).read_text())
    assert saved == found.record()
    assert holds(saved, json.loads((SAMPLES / name).read_text()))
    assert saved["skipped"] == []


def test_what_is_read_has_the_types_that_were_saved():
    horizon, sweep = Horizon.load(SAMPLES / "horizon.json"), Sweep.load(SAMPLES / "sweep.json")
    assert (horizon.layers, horizon.interval, horizon.window) == ((2, 6), (6, 6), (4, 4))
    with pytest.warns(UserWarning, match="layer 6 is the likeliest, but not shown with 4 samples"):
        assert Plan.from_horizon(horizon).horizon == 6
    assert [row.seeds for row in sweep.of("random", 0.25)] == [sweep.rows[0].seeds]
    assert isinstance(sweep.rows[0].seeds, tuple)
    (picture,) = InformationMap.load(SAMPLES / "map.json").pictures
    assert picture.raster().shape == (2, 1, 2, 2)
    assert picture.raster().dtype == np.float64
    assert len(picture.columns) == 4


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"layers": [1]}', '{"rows": 3}'])
@pytest.mark.parametrize("kind", FILES.values())
def test_a_file_of_something_else_is_one_error(kind, text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=rf"other\.json is not a saved {kind.__name__}; pass a"):
        kind.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [(Horizon, "horizon.json", "curves"), (InformationMap, "map.json", "pictures")],
)
def test_a_null_where_a_value_is_needed_is_the_same_error(kind, name, field, tmp_path):
    """`patch(horizon=None)` takes the default, so None must not be read from a damaged file."""
    record = json.loads((SAMPLES / name).read_text())
    (tmp_path / "damaged.json").write_text(json.dumps({**record, field: None}))
    with pytest.raises(InputError, match=rf"damaged\.json is not a saved {kind.__name__}"):
        kind.load(tmp_path / "damaged.json")


def continued(name, tmp_path):
    """The data set of the samples, the numbers asked of it so far, and a copy of a log."""
    data, asked = dataset(bundled("llava-small")[1], "shape_colour", 4, 0), []
    batch = data.batch
    data.batch = lambda block, device: asked.append(list(block)) or batch(block, device)
    return data, asked, Path(shutil.copy(SAMPLES / name, tmp_path))


def test_a_log_of_a_horizon_of_0_1_can_be_continued(tmp_path):
    data, asked, log = continued("horizon.jsonl", tmp_path)
    model, _ = bundled("llava-small")
    found = information.horizon(model, data, layers=[2, 6], maps=2, log=log, **HOW)
    assert asked == [[2, 3]]
    saved = Horizon.load(SAMPLES / "horizon.json")
    assert (found.layer, found.accuracy_full.mean) == (saved.layer, saved.accuracy_full.mean)
    for name, curve in saved.curves.items():
        assert found.curves[name].mean == pytest.approx(curve.mean, abs=1e-4)


def test_a_log_of_a_sweep_of_0_1_can_be_continued(tmp_path):
    data, asked, log = continued("sweep.jsonl", tmp_path)
    model, _ = bundled("llava-small")
    methods = ["random", "information"]
    found = information.sweep(model, data, methods, [2], 0.25, seeds=2, log=log, **HOW)
    assert asked == [[2, 3]]
    saved = Sweep.load(SAMPLES / "sweep.json")
    assert [row.seeds for row in found.rows] == [row.seeds for row in saved.rows]
    for name in ("p", "retained"):
        there = [getattr(row, name) for row in saved.rows]
        assert [getattr(row, name) for row in found.rows] == pytest.approx(there, abs=1e-4)
