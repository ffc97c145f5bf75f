"""Information scores are those of the definition, for every unit, layer and kind of batch."""

import copy

import numpy as np
import pytest
import torch
from naive_information import Naive
from tiny_models import FAMILIES, ODD_LAYERS
from tiny_parts import LAYERS, Picture, text_of

import vtfast
from vtfast import information
from vtfast.errors import InputError, StateError, UnsupportedModelError
from vtfast.information import probe as probe_module
from vtfast.information.packing import Kept
from vtfast.information.probe import Probe

CLOSE = 1e-5
ANSWERS = [[17], [40, 8, 61], [23, 54]]
NAMES = [*FAMILIES, *ODD_LAYERS]
_built: dict = {}


def model_of(name):
    """One model of each family for the file: scoring leaves it as it was."""
    if name not in _built:
        _built[name] = FAMILIES[name].build()
    return _built[name]


def batch_of(name):
    """Samples of one and of two pictures, of several sizes where the family knows them."""
    family = FAMILIES[name]
    if not family.any_size:
        parts = [
            [3, Picture(seed=2), 5],
            [2, Picture(seed=3), Picture(seed=4), 6],  # no text between the two
            [1, Picture(seed=5), 2, Picture(seed=6), 4],
        ]
    else:
        clip = Picture((2, 4, 4), seed=5, video=True) if family.mixes else Picture((1, 8, 4))
        parts = [
            [3, Picture((1, 8, 4), seed=2), 5],
            [2, Picture((1, 6, 4), seed=3), 1, Picture((1, 4, 8), seed=4), 6],
            [4, clip, 2, Picture((1, 4, 4), seed=6), 3],
        ]
    return family.samples(*parts, seed=3)


def scored(name, *, which=slice(None), **options):
    family = FAMILIES[name]
    samples = batch_of(name)[which]
    options = {"progress": False, **options}
    found = information.score(model_of(name), family.batch(samples), ANSWERS[which], **options)
    return samples, found


@pytest.mark.parametrize("per", ["first_token", "mean_token"])
@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_that_of_a_forward_on_the_shortened_sequence(name, per):
    layers = (0, 1, 3, LAYERS - 1)
    window = (1, 2) if FAMILIES[name].any_size else (4, 2)  # six a picture; smaller at edges
    samples, found = scored(name, layers=layers, window=window, per=per)
    count = 1 if per == "first_token" else None
    checked = 0
    for b, sample in enumerate(samples):
        slow = Naive(FAMILIES[name], model_of(name), sample, ANSWERS[b])
        assert abs(slow.full()[:count].mean() - found.p_full[b]) < CLOSE
        padding = max(len(s.ids) for s in samples) - len(sample.ids)
        for row, layer in enumerate(layers):
            without = slow.p(layer, [])[:count].mean()
            assert abs(without - found.p_without[row, b]) < CLOSE
            for picture in (p for p in found.pictures if p.sample == b):
                for unit in range(len(picture.columns)):
                    kept = [c - padding for c in picture.columns[unit]]
                    score = slow.p(layer, kept)[:count].mean() - without
                    assert abs(score - picture.scores[row, unit]) < CLOSE
                    checked += 1
    assert checked >= 60
    assert max(abs(p.scores).max() for p in found.pictures) > 50 * CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_units_cover_every_visual_token_once(name):
    family = FAMILIES[name]
    samples, found = scored(name, layers=[2], window=2)
    ids = family.batch(samples)["input_ids"]
    for b, sample in enumerate(samples):
        pictures = [p for p in found.pictures if p.sample == b]
        columns = sorted(c for p in pictures for unit in p.columns for c in unit)
        visual = (ids[b] == 90) | (ids[b] == 91)
        assert columns == visual.nonzero()[:, 0].tolist()
        assert [p.number for p in pictures] == list(range(len(sample.pictures)))


def test_units_are_windows_of_the_grid_in_raster_order():
    _, found = scored("llava", which=slice(1), layers=[0], window=(4, 5))
    (picture,) = found.pictures
    assert (picture.token_grid, picture.grid) == ((1, 6, 6), (1, 2, 2))
    first = 4  # start token and 3 of text
    raster = first + np.arange(36).reshape(6, 6)
    expected = [raster[:4, :5], raster[:4, 5:], raster[4:, :5], raster[4:, 5:]]
    assert picture.columns == tuple(tuple(part.flatten().tolist()) for part in expected)
    assert picture.raster().shape == (1, 1, 2, 2)
    columns, shares = picture.per_token()
    assert columns.tolist() == list(range(first, first + 36))
    assert shares.sum() == pytest.approx(picture.scores.sum())
    assert shares[0, 5] == pytest.approx(picture.scores[0, 1] / 4)


def test_tiles_are_parts_of_their_picture():
    """A sample with pictures of three tiles and of one, and one with a picture of one tile."""
    family = FAMILIES["internvl"]
    parts = [[2, Picture((1, 12, 4)), 1, Picture((1, 12, 12)), 3], [2, Picture((1, 12, 12)), 3]]
    inputs = family.batch(family.samples(*parts))
    found = information.score(family.build(), inputs, [[5], [6]], layers=[5], window=6).pictures
    places = [(p.sample, p.number, p.part) for p in found]
    assert places == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (1, 0, 0)]
    assert all(p.token_grid == (1, 6, 6) for p in found)


def test_pictures_and_clips_are_numbered_as_they_stand():
    family = FAMILIES["qwen"]
    clip = Picture((2, 4, 4), video=True)
    inputs = family.batch(family.samples([2, clip, 1, Picture((1, 4, 4)), 1, clip, 3]))
    found = information.score(family.build(), inputs, [[5]], layers=[5], window=2).pictures
    assert [(p.number, p.part, p.token_grid[0]) for p in found] == [(0, 0, 2), (1, 0, 1), (2, 0, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_scores_the_same_alone_and_in_a_batch(name):
    _, together = scored(name, layers=[0, 4], window=3)
    for b in range(len(ANSWERS)):
        _, alone = scored(name, which=slice(b, b + 1), layers=[0, 4], window=3)
        assert np.abs(alone.of(0) - together.of(b)).max() < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_several_pictures_are_followed_with_the_text_between_them(name):
    family = FAMILIES[name]
    samples = batch_of(name)
    probe = Probe(model_of(name), family.batch(samples), ANSWERS, [2])
    for b, (sample, answer) in enumerate(zip(samples, ANSWERS, strict=True)):
        slow = Naive(family, model_of(name), sample, answer)
        there = np.flatnonzero(np.isin(probe.original[b], probe.visual[b]))
        some = np.arange(1, len(there), 5)
        (reading,), *_ = probe.follow([2], [Kept(b, there[some], len(answer))])
        expected = slow.p(2, [slow.visual[i] for i in some]).tolist()
        assert reading.p == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("name", ["qwen", "qwen3.5"])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_a_packed_batch_changes_nothing(name, chunk):
    _, usual = scored(name, layers=[1, 5])
    _, other = scored(name, layers=[1, 5], chunk=chunk)
    for one, two in zip(usual.pictures, other.pictures, strict=True):
        assert np.abs(one.scores - two.scores).max() < CLOSE


def test_batches_get_smaller_when_memory_runs_out(monkeypatch):
    _, usual = scored("llava", which=slice(1), layers=[2, 3])
    run, sizes = probe_module.Probe._run, []

    def tight(self, layer, packing):
        sizes.append(len(packing.tokens))
        if len(packing.tokens) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, layer, packing)

    monkeypatch.setattr(probe_module.Probe, "_run", tight)
    _, found = scored("llava", which=slice(1), layers=[2, 3])
    assert np.abs(found.of(0) - usual.of(0)).max() < CLOSE
    assert sizes[:4] == [37, 19, 10, 5]
    assert max(sizes[4:]) == 5  # what was learnt holds for the next layer


def test_memory_that_is_too_small_for_one_unit_is_an_error(monkeypatch):
    def full(self, layer, packing):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe_module.Probe, "_run", full)
    with pytest.raises(torch.OutOfMemoryError):
        scored("llava", which=slice(1), layers=[0])


def test_an_answer_said_greedily_is_right_and_another_is_not():
    family, model = FAMILIES["llava"], model_of("llava")
    inputs = family.batch(batch_of("llava")[:1])
    said = model.generate(**inputs, do_sample=False, max_new_tokens=3)[0, -3:].tolist()
    wrong = [*said[:-1], 5 if said[-1] != 5 else 6]
    for answer, right in ((said, True), (wrong, False)):
        found = information.score(model, inputs, answer, layers=[0], progress=False)
        assert found.right_full.tolist() == [right]


def test_the_model_is_left_as_it_was():
    family = FAMILIES["qwen"]
    model = family.build(attention="eager")
    inputs = family.batch(batch_of("qwen")[:1])
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    hooks = {n: len(m._forward_pre_hooks) for n, m in model.named_modules()}
    information.score(model, inputs, ANSWERS[0], layers=[1], progress=False)
    assert text_of(model).config._attn_implementation == "eager"
    assert {n: len(m._forward_pre_hooks) for n, m in model.named_modules()} == hooks
    changed = [n for n, m in model.named_modules() if vars(m).keys() != before[n].keys()]
    assert changed == []


def test_hooks_and_attention_are_undone_when_scoring_is_interrupted(monkeypatch):
    family = FAMILIES["llava"]
    model = family.build()
    inputs = family.batch(batch_of("llava")[:1])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        information.score(model, inputs, ANSWERS[0], progress=stop)
    text = text_of(model)
    assert text.config._attn_implementation == "sdpa"
    assert not any(layer._forward_pre_hooks for layer in text.layers)


def test_a_saved_map_is_read_as_it_was(tmp_path):
    _, found = scored("qwen", layers=[0, 5])
    found.save(tmp_path / "map.json")
    again = information.InformationMap.load(tmp_path / "map.json")
    assert again.record() == found.record()
    assert np.array_equal(again.pictures[1].scores, found.pictures[1].scores)


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda ids: [*torch.tensor(ids)]])
def test_answers_and_layers_may_be_arrays(kind):
    _, expected = scored("llava", layers=[1, 4], window=3)
    family = FAMILIES["llava"]
    inputs = family.batch(batch_of("llava"))
    options = {"layers": np.array([4, 1]), "window": 3, "progress": False}
    found = information.score(model_of("llava"), inputs, [*map(kind, ANSWERS)], **options)
    assert found.record() == expected.record()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [LAYERS]}, "layers=.6.: the model has 6 decoder layers; pass a list of"),
        ({"layers": [-1]}, "pass a list of some of 0 to 5"),
        ({"layers": []}, "pass a list of some of 0 to 5"),
        ({"per": "token"}, "per='token'; pass one of 'first_token', 'mean_token'"),
        ({"window": 0}, "window=0: pass tokens along a side"),
        ({"window": (2,)}, "pass tokens along a side, or"),
        ({"layers": 3}, "layers=3: the model has 6 decoder layers; pass a list of some of 0 to 5"),
        ({"layers": [True]}, "pass a list of some of 0 to 5"),
        ({"impl": "fast"}, "impl='fast'; pass one of 'auto', 'eager', 'triton'"),
        ({"chunk": 0}, "chunk=0: expected an int >= 1"),
        ({"answer": [[1]]}, "1 answers for 3 samples; pass one for each"),
        ({"answer": [[1], [], [2]]}, "the answer of sample 1 has no token"),
        ({"answer": [[1], [999], [2]]}, r"sample 1 is \[999\]; pass token ids below 120"),
        ({"answer": "yes"}, "pass token ids; information.answer_ids makes them"),
        ({"answer": ["1", "23", "4"]}, r"answer=\['1', '23', '4'\]: pass token ids; information"),
        ({"answer": [[1.5], [2], [3]]}, "pass token ids; information.answer_ids makes them"),
        ({"answer": [[1], 2, [3]]}, "pass token ids"),
        ({"answer": 3}, "answer=3: pass token ids"),
        ({"answer": torch.tensor(3)}, "pass token ids"),
        ({"labels": torch.zeros(3, 1)}, "inputs hold labels; pass what a processor returns"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused(options, says):
    family = FAMILIES["llava"]
    inputs = family.batch(batch_of("llava"))
    options = dict(options)
    inputs |= {name: options.pop(name) for name in ("labels",) if name in options}
    answer = options.pop("answer", ANSWERS)
    with pytest.raises(InputError, match=says):
        information.score(model_of("llava"), inputs, answer, progress=False, **options)


def test_a_sample_without_a_picture_is_refused():
    family = FAMILIES["llava"]
    inputs = family.batch(family.samples([3, Picture(seed=2), 5], [6], seed=3))
    with pytest.raises(InputError, match="sample 1 of the batch has no picture; leave it out"):
        information.score(model_of("llava"), inputs, [[3], [4]], progress=False)


def test_a_patched_model_is_refused():
    family = FAMILIES["llava"]
    model = copy.deepcopy(model_of("llava"))
    vtfast.patch(model)
    with pytest.raises(StateError, match=r"the model is patched; call vtfast\.unpatch"):
        information.score(model, family.inputs("single"), [3], progress=False)


def test_another_model_is_refused():
    with pytest.raises(UnsupportedModelError):
        information.score(torch.nn.Linear(2, 2), {}, [3], progress=False)
