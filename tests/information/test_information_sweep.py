"""Sweeps: every cell of the table is what a pruned model does, and the oracle keeps the best."""

import numpy as np
import pytest
import torch
from naive_information import Naive
from tiny_data import ANSWERS, TinyData
from tiny_models import FAMILIES, ODD_LAYERS

import vtfast
from vtfast import Prune, information
from vtfast.errors import InputError, PlanError

MODELS: dict = {}


def model_of(name="llava"):
    if name not in MODELS:
        MODELS[name] = FAMILIES[name].build()
    return MODELS[name]


def swept(name="llava", methods=("random",), layers=(0, 3), keep=0.25, size=3, **options):
    options = {"progress": False, "window": 2, "batch": 2, "seeds": 2, **options}
    return information.sweep(model_of(name), TinyData(name, size), methods, layers, keep, **options)


@pytest.mark.parametrize("method", ["random", "diversity", "topk"])
@pytest.mark.parametrize("name", [*FAMILIES, *ODD_LAYERS])
def test_p_is_that_of_the_patched_model_at_the_first_token(name, method):
    found = swept(name, [method], (2,), 0.3, per="first_token", retained=False, size=3)
    data, seeds = TinyData(name, 3), range(2 if method == "random" else 1)
    expected = []
    for seed in seeds:
        with torch.no_grad(), vtfast.patch(model_of(name), [Prune(2, method, 0.3)], seed=seed):
            for i in range(3):
                told = data.batch([i])
                logits = model_of(name)(**told.inputs, use_cache=False).logits[0, -1]
                expected.append(float(logits.softmax(0)[told.answers[0][0]]))
    (row,) = found.rows
    assert row.p == pytest.approx(np.mean(expected), abs=1e-5)
    assert len(row.seeds) == len(seeds)


def test_a_method_never_sees_the_answer():
    """FastV's score is that of the last token: of the prompt, not of the answer behind it."""
    data, model = TinyData("llava", 3), model_of()
    found = swept(methods=["topk"], layers=(2,), keep=0.3, retained=False, per="mean_token")
    expected = []
    with torch.no_grad():
        for i, sample in enumerate(data.samples):
            told = data.batch([i])
            with vtfast.patch(model, [Prune(2, "topk", 0.3)], record=True) as handle:
                model(**told.inputs, use_cache=False)
                kept = handle.report.kept[2][0].tolist()
            slow = Naive(FAMILIES["llava"], model, sample, ANSWERS[i][:-1])
            expected.append(float(slow.p(2, kept).mean()))
    assert found.rows[0].p == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_oracle_keeps_the_highest_scores_and_so_retains_the_most():
    found = swept(methods=["random", "diversity", "information"], layers=(0, 2, 4), window=1)
    for layer in range(3):
        best = found.of("information", 0.25)[layer].retained
        for method in ("random", "diversity"):
            assert found.of(method, 0.25)[layer].retained < best
    data, model = TinyData("llava", 3), model_of()
    p, held = [], []
    for i, sample in enumerate(data.samples):
        slow = Naive(FAMILIES["llava"], model, sample, ANSWERS[i][:-1])
        without = slow.p(2, []).mean()
        scores = {c: float(slow.p(2, [c]).mean() - without) for c in slow.visual}
        best = sorted(sorted(scores, key=lambda c: -scores[c])[:9])  # a quarter of 36
        p.append(float(slow.p(2, best).mean()))
        held.append(sum(scores[c] for c in best))
    row = found.of("information", 0.25)[1]
    assert row.p == pytest.approx(np.mean(p), abs=1e-5)
    assert row.retained == pytest.approx(np.mean(held), abs=1e-4)


def test_all_tokens_retain_the_total_and_answer_as_the_full_model():
    found = swept(methods=["random"], layers=(1, 4), keep=1.0, seeds=1)
    assert [row.retained for row in found.rows] == pytest.approx(found.total)
    assert [row.accuracy for row in found.rows] == [found.accuracy_full.mean[0]] * 2


def test_keeping_none_is_dropping_all():
    found = swept(methods=["random", "information"], layers=(1, 4), keep=0.0)
    assert [row.retained for row in found.rows] == [0.0] * 4
    assert [r.accuracy for r in found.of("random", 0.0)] == list(found.without.mean)


def test_random_runs_with_every_seed_and_says_how_far_they_spread():
    found = swept(methods=["random", "diversity"], layers=(0,), seeds=3, retained=False)
    (row,) = found.of("random", 0.25)
    assert len(row.seeds) == 3
    assert row.accuracy == pytest.approx(np.mean(row.seeds))
    assert row.spread == pytest.approx(np.std(row.seeds, ddof=1))
    assert (found.of("diversity", 0.25)[0].spread, row.retained) == (0.0, None)


def test_an_interrupted_run_can_be_continued_with_the_same_result(tmp_path):
    log, calls = tmp_path / "sweep.jsonl", []
    options = {"methods": ["random", "information"], "layers": (1,), "size": 5}
    whole = swept(**options)

    def stop():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(**options, log=log, progress=stop)
    assert swept(**options, log=log) == whole
    text = log.read_text()
    assert swept(**options, log=log) == whole
    assert log.read_text() == text


def test_it_saves_a_row_for_every_cell(tmp_path):
    found = swept(methods=["random", "diversity"], keep=[0.25, 0.5], size=1)
    found.save(tmp_path / "sweep.json")
    assert (tmp_path / "sweep.json").read_text().count('"spread"') == 8 == len(found.rows)
    assert information.Sweep.load(tmp_path / "sweep.json") == found


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"methods": ["best"]}, PlanError, "'best' is unknown; methods: .*the oracle"),
        ({"methods": []}, InputError, "methods and keep: pass at least one of each"),
        ({"methods": "random"}, InputError, "methods as a list of names"),
        ({"keep": 7}, InputError, r"keep=7: expected shares of the visual tokens"),
        ({"keep": 1.5}, InputError, "keep=1.5: expected shares"),
        ({"layers": (6,)}, InputError, "the model has 6 decoder layers"),
        ({"seeds": 0}, InputError, "seeds=0: expected an int >= 1"),
        ({"per": "all"}, InputError, "per='all'"),
        ({"batch": 0}, InputError, "batch=0: expected an int >= 1"),
        ({"confidence": 2}, InputError, r"confidence=2: expected a number in \(0, 1\)"),
        ({"methods": ["random", "drop"]}, PlanError, '"drop", which keeps nothing; pass keep=0'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused_before_anything_runs(options, error, says, tmp_path):
    with pytest.raises(error, match=says):
        swept(**options, log=tmp_path / "sweep.jsonl")
    assert not (tmp_path / "sweep.jsonl").exists()


def test_methods_and_budgets_named_twice_are_swept_once():
    twice = swept(methods=["random", "random"], keep=[0.25, 0.25], layers=(0,), retained=False)
    assert twice == swept(methods=["random"], keep=0.25, layers=(0,), retained=False)


def test_a_run_with_other_budgets_is_not_continued(tmp_path):
    log = tmp_path / "sweep.jsonl"
    swept(keep=0.25, layers=(0,), retained=False, log=log)
    with pytest.raises(InputError, match=r"with keep=\[0.25\], and this one has \[0.5\]; pass"):
        swept(keep=0.5, layers=(0,), retained=False, log=log)
