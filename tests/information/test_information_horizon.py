"""The horizon: its curves, its rule, plans made from it, and interrupted runs."""

import json

import numpy as np
import pytest
from horizon_records import ABOUT, record, summary
from naive_information import Naive
from tiny_data import ANSWERS, TinyData
from tiny_models import FAMILIES, ODD_LAYERS
from tiny_parts import LAYERS

import vtfast
from vtfast import information
from vtfast.errors import InputError, PlanError
from vtfast.information.bootstrap import estimate, resample
from vtfast.information.horizon_rule import first_from_which_on
from vtfast.information.horizons import summarize

MODELS: dict = {}


def model_of(name="llava"):
    if name not in MODELS:
        MODELS[name] = FAMILIES[name].build()
    return MODELS[name]


def measured(name="llava", size=5, **options):
    options = {"progress": False, "window": 6, "maps": 2, "batch": 2, **options}
    return information.horizon(model_of(name), TinyData(name, size), **options)


@pytest.mark.parametrize("per", ["first_token", "mean_token"])
@pytest.mark.parametrize("name", [*FAMILIES, *ODD_LAYERS])
def test_the_curves_are_means_of_what_each_sample_alone_says(name, per):
    found = measured(name, size=3, layers=[1, 4], window=2, per=per, maps=2)
    data, loss, full, scores = TinyData(name, 3), [], [], []
    for i, sample in enumerate(data.samples):
        slow = Naive(FAMILIES[name], model_of(name), sample, ANSWERS[i])
        count = 1 if per == "first_token" else len(ANSWERS[i]) - 1
        full.append(float(slow.full()[:count].mean()))
        without = [float(slow.p(layer, [])[:count].mean()) for layer in (1, 4)]
        loss.append([full[-1] - p for p in without])
        if i < 2:
            first = slow.visual[0]
            columns = 6 if name == "llava" else 3
            rows = len(slow.visual) // columns
            raster = first + np.arange(rows * columns).reshape(rows, columns)
            units = [
                raster[r : r + 2, c : c + 2].flatten().tolist()
                for r in range(0, rows, 2)
                for c in range(0, columns, 2)
            ]
            scores.append(
                [
                    [float(slow.p(layer, unit)[:count].mean()) - p for unit in units]
                    for layer, p in zip((1, 4), without, strict=True)
                ]
            )
    assert found.p_full.mean[0] == pytest.approx(np.mean(full), abs=1e-5)
    assert found.curves["p_loss"].mean == pytest.approx(np.mean(loss, 0), abs=1e-5)
    per_unit = [np.array(one) for one in scores]
    signed = np.mean([one.mean(1) for one in per_unit], 0)
    absolute = np.mean([np.abs(one).mean(1) for one in per_unit], 0)
    spread = np.mean([one.std(1) for one in per_unit], 0)
    assert found.curves["information"].mean == pytest.approx(signed, abs=1e-5)
    assert found.curves["absolute"].mean == pytest.approx(absolute, abs=1e-5)
    assert found.spread == pytest.approx(spread, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ([], 1),
        ([(300, "i", 1, 0.008)], 1),  # within 1 % of 0.9
        ([(300, "i", 1, 0.010)], 2),
        ([(300, "p", 2, 0.885)], 3),
        ([(300, "p", 2, 0.892)], 1),
        ([(30, "right", 1, False)], 2),
        ([(2, "right", 1, False)], 2),  # a loss of 0.7 % that may be more
        ([(300, "p", 3, 0.8)], None),
        ([(300, "i", 3, 0.02), (300, "i", 0, 0.0), (300, "p", 0, 0.9)], None),
        ([(300, "p", 0, 0.9), (300, "right", 0, True), (300, "i", 0, 0.0)], 0),
    ],
    ids=lambda value: str(value).replace("300, ", "") if isinstance(value, list) else None,
)
def test_the_horizon_is_the_first_layer_from_which_on_all_three_stay_within_tolerance(
    changes, layer
):
    assert summary(*changes).layer == layer


def test_a_wider_tolerance_makes_the_horizon_earlier():
    assert summary((300, "p", 1, 0.87), tolerance=0.05).layer == 1
    assert summary((300, "p", 1, 0.87), tolerance=0.02).layer == 2


def test_more_confidence_makes_the_horizon_later():
    changes = [(6, "right", 1, False)]
    assert summary(*changes, n=1000, confidence=0.6).layer == 1
    assert summary(*changes, n=1000, confidence=0.999).layer == 2


def test_the_interval_says_where_resampled_data_put_the_horizon():
    assert summary().interval == (1, 1)
    assert summary((3, "right", 1, False)).interval == (1, 2)  # 1 % of 300
    assert summary((3, "right", 3, False)).interval == (1, None)
    assert summary((300, "p", 3, 0.1)).interval == (None, None)


def test_the_horizon_comes_after_the_last_layer_outside_the_tolerance():
    within = np.array([True, False, True, True])
    assert first_from_which_on(within, (0, 3, 6, 9)) == 6
    assert first_from_which_on(~within, (0, 3, 6, 9)) is None


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(300):
        values = rng.normal(1.0, 2.0, 60)
        found = estimate(values, resample(60, seed=trial, rounds=400), 0.9)
        inside += found.low[0] <= 1.0 <= found.high[0]
    assert 0.83 < inside / 300 < 0.95  # 0.9, and 4 standard errors below


def test_a_note_says_what_few_samples_cannot_rule_out():
    (note,) = summary(n=30).notes
    assert note.startswith("30 samples with 30 right answers cannot rule out that up to 9.5 % of")
    assert summary(n=300).notes == []
    assert "at this confidence" in summary(n=300, tolerance=1e-18).notes[0]
    assert "Units were scored for 2 samples, too few" in measured(layers=[2]).notes[-1]
    assert "No unit was scored" in measured(maps=0, layers=[2]).notes[-1]


def test_what_was_not_measured_is_not_claimed():
    some = measured(maps=0, layers=[1, 3])
    assert some.notes[0] == "Measured at layers 1, 3 only; other layers may need visual tokens."
    none = summary((300, "p", 3, 0.1), num_layers=8)
    assert none.verdict == "no horizon up to layer 3 of 8"
    assert none.notes[0].startswith("Measured at layers 0, 1, 2, 3 only")


def test_a_note_says_that_a_model_without_right_answers_loses_nothing():
    rows = [{**record([0.1] * 4, [False] * 4, [0.0] * 4), "right_full": False} for _ in range(300)]
    found = summarize(rows, layers=(0, 1, 2, 3), **ABOUT)
    assert found.notes == ["The model answers nothing right, so there is nothing to lose."]


def lost(count, of, layer=1):
    """The outcome where answers are lost at layer 1 of 4, and none after it."""
    found = summary((count, "right", layer, False), n=of)
    return found.layer, found.shown, found.verdict.partition(", ")[2]


def test_none_lost_of_few_samples_shows_no_horizon_yet():
    """At n = 160 none lost counted as proof and a single one as proof of the contrary."""
    assert lost(0, 160) == (1, False, "not shown with 160 samples; about 300 would")
    assert lost(0, 299)[:2] == (1, False)
    assert lost(0, 300) == (1, True, "")


def test_one_lost_of_few_samples_shows_nothing_and_of_more_a_horizon():
    layer, shown, doubt = lost(1, 160, layer=3)
    assert (layer, shown) == (1, False)
    wanted = int(doubt.split("about ")[1].split()[0])
    assert 1000 < wanted < 2500
    assert lost(wanted // 160, wanted, layer=3) == (1, True, "")
    assert lost(1, 600, layer=3) == (1, True, "")


def test_many_lost_at_the_last_layer_show_that_there_is_no_horizon():
    assert lost(20, 160, layer=3) == (None, True, "")
    assert lost(3, 160, layer=3)[:2] == (None, False)  # 1.9 %, and perhaps below 1 %
    assert (
        "no horizon up to layer 3 of 4, not shown with 160 samples; about "
        in summary((3, "right", 3, False), n=160).verdict
    )


def test_answers_gained_count_against_those_lost():
    rows = [record([0.9] * 2, [True, True], [0.0] * 2) for _ in range(4000)]
    for row in rows[:400]:
        row["right_full"] = row["right_without"][1] = False  # wrong before and, at 0, right
        row["right_without"] = [row["right_without"][0], False]
    for row in rows[400:600]:
        row["right_without"] = [False, True]
    found = summarize(rows, layers=(0, 1), **{**ABOUT, "num_layers": 2, "tolerance": 0.02})
    assert found.curves["accuracy_loss"].mean[0] == pytest.approx((200 - 400) / 4000)
    assert found.layer == 0


def test_scores_of_few_samples_are_asked_for_more():
    """The losses are shown, and the scores vary too much: more samples would not help."""
    rows = [record([0.9], [True], [0.0 if i % 4 else 0.03]) for i in range(400)]
    for row in rows[40:]:
        for name in ("information", "absolute", "spread"):
            del row[name]
    found = summarize(rows, layers=(0,), **{**ABOUT, "num_layers": 1})
    assert (found.layer, found.shown, found.needed, found.maps) == (0, False, None, 40)
    assert 100 < found.needed_maps < 400
    assert found.doubt == f"not shown with 400 samples; scores of about {found.needed_maps} would"


def test_without_right_answers_nothing_is_shown():
    rows = [{**record([0.9], [False], [0.0]), "right_full": False} for _ in range(400)]
    found = summarize(rows, layers=(0,), **{**ABOUT, "num_layers": 1})
    assert (found.layer, found.shown, found.doubt) == (0, False, "not shown with 400 samples")


# Plans


def test_a_plan_from_a_horizon_that_is_not_shown_keeps_its_stage_and_says_so():
    found = summary(n=160, num_layers=LAYERS)
    said = "reading is uncertain: layer 1 is the likeliest, but not shown with 160 samples; about"
    with (
        pytest.warns(UserWarning, match=said) as warned,
        vtfast.patch(model_of(), "divprune+random", keep=0.5, horizon=found) as handle,
    ):
        assert [stage.method for stage in handle.plan.stages] == ["diversity", "random"]
    assert len(warned) == 1
    text = str(handle.plan)
    assert "horizon 1 (measured on reading, not shown with 160 samples; about 300 would)" in text


def test_a_plan_from_no_horizon_that_is_not_shown_says_so():
    found = summary((3, "right", 3, False), n=160, num_layers=LAYERS)
    with pytest.warns(UserWarning, match="reading seems to have no horizon, not shown with 160"):
        plan = vtfast.Plan.from_horizon(found, keep=0.5)
    assert [stage.method for stage in plan.stages] == ["diversity"]
    assert "(none measured on reading, not shown with 160 samples; about" in str(plan)


def test_a_measured_horizon_makes_the_plan_of_a_patch():
    found = summary(num_layers=LAYERS)
    with vtfast.patch(model_of(), "divprune+random", keep=0.5, horizon=found) as handle:
        assert [stage.layer for stage in handle.plan.stages] == [0, 1]
        assert handle.plan.horizon_source == "measured on reading"
    assert vtfast.Plan.from_horizon(found, keep=0.5).horizon == 1


def test_a_patch_without_a_horizon_leaves_out_the_random_stage_and_warns():
    found = summary((300, "p", 3, 0.1), num_layers=LAYERS)
    with (
        pytest.warns(UserWarning, match="reading has no horizon"),
        vtfast.patch(model_of(), "divprune+random", keep=0.5, horizon=found) as handle,
    ):
        assert [stage.method for stage in handle.plan.stages] == ["diversity"]


def test_a_horizon_of_another_depth_is_refused():
    with pytest.raises(PlanError, match="num_layers=4 and this one has 6"):
        vtfast.patch(model_of(), horizon=summary())


# Keeping results


def test_a_saved_horizon_is_read_as_it_was(tmp_path):
    found = measured(size=2, layers=[0, 5])
    found.save(tmp_path / "horizon.json")
    assert information.Horizon.load(tmp_path / "horizon.json") == found


def test_a_run_interrupted_anywhere_can_be_continued_with_the_same_result(tmp_path):
    log, options = tmp_path / "run.jsonl", {"layers": [0, 3], "size": 5}
    whole = measured(log=log, **options)
    text = log.read_bytes()
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines]).tolist()
    assert len(lines) == 6
    for cut in (0, 5, ends[0], ends[0] + 1, ends[1] - 1, ends[2], ends[2] + 9, ends[4], ends[5]):
        log.write_bytes(text[:cut])
        assert measured(log=log, **options) == whole
        again = [json.loads(line) for line in log.read_text().splitlines()]
        assert again[0] == json.loads(lines[0])
        assert sorted(line["sample"] for line in again[1:]) == TinyData().keys()
        assert log.read_bytes() == text


def test_a_run_cut_off_inside_a_batch_continues_with_the_rest_of_it(tmp_path):
    """Only rounding differs, as the rest is a smaller batch."""
    log, options = tmp_path / "run.jsonl", {"layers": [3], "size": 5}
    whole = measured(log=log, **options)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:4]) + lines[4][:9])
    found = measured(log=log, **options)
    assert found.layer == whole.layer
    assert found.p_full.mean == pytest.approx(whole.p_full.mean, abs=1e-6)
    assert len(log.read_text().splitlines()) == 6


def test_what_is_finished_is_not_run_again(tmp_path):
    log, ran = tmp_path / "run.jsonl", []

    def stop():
        ran.append(None)
        if len(ran) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(log=log, layers=[1], progress=stop)
    assert len(log.read_text().splitlines()) == 3  # settings and the first two samples
    data = TinyData()
    asked = []
    data.batch = lambda indices, device: asked.append(list(indices)) or TinyData().batch(indices)
    options = {"window": 6, "maps": 2, "batch": 2, "layers": [1], "progress": False, "log": log}
    found = information.horizon(model_of(), data, **options)
    assert asked == [[2, 3], [4]]
    assert found == measured(layers=[1])


def test_a_log_that_can_no_longer_be_written_is_one_error(tmp_path):
    log = tmp_path / "run.jsonl"

    def take_away():
        if log.is_file():
            log.unlink()
            log.mkdir()

    with pytest.raises(
        InputError, match=r"cannot write .*run\.jsonl: Is a directory; pass another"
    ):
        measured(log=log, layers=[2], progress=take_away)


def test_the_last_of_two_records_of_a_sample_counts(tmp_path):
    """A sample is measured again where a log has it without the scores of its units."""
    log = tmp_path / "run.jsonl"
    whole = measured(log=log, layers=[2])
    first, *lines = log.read_text().splitlines()
    other = json.dumps({**json.loads(lines[3]), "p_full": 0.5})
    log.write_text("\n".join([first, other, *lines, lines[1]]) + "\n")
    assert measured(log=log, layers=[2]) == whole


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('{"settings": {"measures": "sweep"}}\n', "is the log of a run with measures='sweep', and"),
        ("a shopping list\n", "is not a vtfast log; pass another name"),
        ('{"a": 1}\n', "is not a vtfast log"),
        ('{"settings": [1]}\n', "is not a vtfast log"),
        ("one line that has no end", "is not a vtfast log"),
        ('{"settings": {"measures": "swe', "is not a vtfast log"),
        (json.dumps({"settings": {"measures": ["x"] * 99}}) + "\n", r"measures=.{59}…, and this"),
    ],
    ids=["sweep", "text", "other JSON", "list", "no line", "cut off", "long"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, written, says):
    log = tmp_path / "run.jsonl"
    log.write_text(written)
    with pytest.raises(InputError, match=says):
        measured(log=log, layers=[2])
    assert log.read_text() == written


def test_a_run_of_another_model_is_not_continued(tmp_path):
    log = tmp_path / "run.jsonl"
    measured(log=log, layers=[2])
    with pytest.raises(InputError, match="is the log of a run with model="):
        measured("qwen", log=log, layers=[2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [9]}, "the model has 6 decoder layers"),
        ({"tolerance": 0}, r"tolerance=0: expected a number in \(0, 1\)"),
        ({"confidence": 0.4}, r"confidence=0.4: expected a number in \(0.5, 1\)"),
        ({"maps": -1}, "maps=-1: expected an int >= 0"),
        ({"batch": 0}, "batch=0: expected an int >= 1"),
        ({"per": "answer"}, "per='answer'; pass one of"),
        ({"tolerance": "low"}, "tolerance='low': expected a number"),
        ({"seed": -1}, "seed=-1: expected an int >= 0"),
        ({"chunk": -1}, "chunk=-1: expected an int >= 1"),
        ({"impl": "fast"}, "impl='fast'; pass one of"),
        ({"log": "/nowhere/run.jsonl"}, "cannot write /nowhere/run.jsonl"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        measured(**options)
