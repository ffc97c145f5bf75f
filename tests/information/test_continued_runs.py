"""A log belongs to samples by their content, so a run goes on with every sample it has."""

import json
from dataclasses import replace

import numpy as np
import pytest
from studies import STUDIES, essence, examples, study, with_picture
from toy_scores import bundled

from vtfast.errors import InputError


def stopped(asked, log, folder):
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])
    return asked, ["sample 2", "sample 3"]


def mended(asked, log, folder):
    return [asked[0], examples(folder, 2)[1], *asked[2:]], ["sample 1"]


def repainted(asked, log, folder):
    """The file of a finished sample holds another picture now."""
    (folder / "0.png").write_bytes((folder / "2.png").read_bytes())
    return asked, ["sample 0"]


def extended(asked, log, folder):
    more = examples(folder, 6)[4:]
    return [more[0], *asked, more[1]], ["sample 4", "sample 5"]


def cut(asked, log, folder):
    return asked[:2], []


def reordered(asked, log, folder):
    return asked[::-1], []


def moved(asked, log, folder):
    """Other file names and names of the samples, the same pictures."""
    (folder / "elsewhere").mkdir()
    found = examples(folder / "elsewhere", 4)
    return [replace(example, name=f"line {i}") for i, example in enumerate(found)], []


CHANGES = [stopped, mended, repainted, extended, cut, reordered, moved]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", STUDIES)
def test_a_run_goes_on_with_every_sample_it_has(kind, change, tmp_path):
    """In 0.1 a log was of a whole file: mending one picture made all finished samples useless."""
    model, processor = bundled("qwen")
    asked, log = examples(tmp_path, 4), tmp_path / "run.jsonl"
    if change is mended:
        asked[1] = with_picture(asked[1], tmp_path, (3000, 1))
    before, names = study(kind, model, processor, asked, skip_bad=True, log=log)
    assert set(names) == {f"sample {i}" for i in range(4)}
    assert [bad.name for bad in before.skipped] == ["sample 1"] * (change is mended)

    asked, missing = change(asked, log, tmp_path)
    found, names = study(kind, model, processor, asked, log=log)
    assert names == missing
    fresh, _ = study(kind, model, processor, asked)
    assert essence(found) == pytest.approx(essence(fresh), abs=1e-4)


@pytest.mark.parametrize("kind", STUDIES)
def test_two_equal_samples_are_two_samples(kind, tmp_path):
    model, processor = bundled("llava-small")
    one, other = examples(tmp_path, 2)
    log = tmp_path / "run.jsonl"
    found, _ = study(kind, model, processor, [one, other, one], log=log)
    keys = [json.loads(line)["sample"] for line in log.read_text().splitlines()[1:]]
    assert len(set(keys)) == 3
    samples = len(found.p_full) if kind == "score" else found.samples
    assert samples == 3
    found, names = study(kind, model, processor, [one, one, one], log=log)
    assert names == ["sample 0"]


def test_more_maps_than_a_log_has_are_measured_and_fewer_are_read(tmp_path):
    """The scores of a log are used first, wherever their samples stand now."""
    model, processor = bundled("llava-small")
    asked, log = examples(tmp_path, 4), tmp_path / "run.jsonl"
    study("horizon", model, processor, asked, log=log)  # with scores of samples 0 and 1
    scored = [line for line in map(json.loads, log.read_text().splitlines()) if "spread" in line]
    found, names = study("horizon", model, processor, asked[::-1], log=log)
    assert (names, found.maps) == ([], 2)
    means = np.mean([line["absolute"] for line in scored], 0)
    assert found.curves["absolute"].mean == pytest.approx(means)
    found, names = study("horizon", model, processor, asked[2:], log=log)
    assert (names, found.maps) == (["sample 2", "sample 3"], 2)


def test_a_log_of_0_1_is_refused_where_its_data_file_was_changed(tmp_path):
    model, processor = bundled("llava-small")
    asked, log = examples(tmp_path, 3), tmp_path / "run.jsonl"
    study("horizon", model, processor, asked, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[0]["settings"] |= {"data": "0123456789abcdef", "samples": 3, "maps": 2}
    lines[1:] = [{**line, "sample": i} for i, line in enumerate(lines[1:])]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    log.write_text(text)
    with pytest.raises(InputError, match=r"run\.jsonl is a log of vtfast 0\.1, which numbers the"):
        study("horizon", model, processor, asked, log=log)
    assert log.read_text() == text


def test_a_batch_of_tensors_has_no_log(tmp_path):
    model, processor = bundled("llava-small")
    from vtfast import information
    from vtfast.information import Dataset

    data = Dataset(processor, examples(tmp_path, 1), "colours")
    batch = data.batch([0])
    with pytest.raises(InputError, match="log goes with a Dataset"):
        information.score(model, batch.inputs, batch.answers, log=tmp_path / "run.jsonl")
    with pytest.raises(InputError, match="a dataset has its own answers"):
        information.score(model, data, batch.answers)
