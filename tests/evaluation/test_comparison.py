"""The table of a comparison: its arithmetic, its intervals, its figure, and its file."""

import json
from pathlib import Path

import pytest

from vtfast.evaluation import Comparison, wilson
from vtfast.evaluation.compare import begins, exact
from vtfast.evaluation.results import Row, tabulate
from vtfast.inputs.data import Skipped

SAMPLES = Path(__file__).parent / "samples_0_1"


def run(right, seconds, tokens=1.0):
    return {"right": right, "tokens": tokens, "flops": 2, "seconds": seconds, "kv_bytes": 3}


def test_the_table_follows_from_the_records():
    """Times are of a batch: two questions that ran together share them."""
    records = [
        {"together": 2, "runs": {"unpruned": run(True, 2.0), "a": run(False, 1.0)}},
        {"together": 2, "runs": {"unpruned": run(True, 2.0), "a": run(True, 1.0)}},
        {"together": 1, "runs": {"unpruned": run(False, 1.0), "a": run(True, 0.1)}},
        {"together": 1, "runs": {"unpruned": run(True, 4.0), "a": run(True, 1.2)}},
    ]
    full, row = tabulate(records, {"unpruned": None, "a": "plan a"})
    assert (row.correct, row.lost, row.gained, row.accuracy) == (3, 1, 1, 0.75)
    assert row.time_ratio == pytest.approx(0.4)
    assert row.seconds == pytest.approx(2.3 / 4)
    assert (full.correct, full.time_ratio) == (3, 1)
    pairs = zip((0, 0, 2, 3), records, strict=True)
    of_0_1 = [{"block": block, "runs": record["runs"]} for block, record in pairs]
    assert tabulate(of_0_1, {"unpruned": None, "a": "plan a"}) == (full, row)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    [(0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 100, 0.4038, 0.5962)],
)
def test_wilson_intervals(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_intervals_stay_within_what_a_share_can_be():
    """Rounding made the low end of 0 of 10 a little negative, and the table said "-0 to 28"."""
    for n in range(1, 200):
        assert 0 <= wilson(0.0, n)[0] < 1e-9
        assert 1 - 1e-9 < wilson(1.0, n)[1] <= 1
    assert "(0 to 28)" in str(
        Comparison((Row("a", None, 10, 0, 0, 0, *[1.0] * 5),), "", "", 1, 10, {})
    )


def test_pareto_rows_are_those_that_no_other_dominates():
    points = {"a": (9, 64), "b": (9, 32), "c": (8, 16), "d": (7, 16), "e": (8, 40), "f": (9, 32)}
    rows = tuple(
        Row(name, None, 10, correct, 0, 0, tokens, 1, 1, 1, 1)
        for name, (correct, tokens) in points.items()
    )
    assert Comparison(rows, "task", "llava", 8, 10, {}).pareto == ("b", "c", "f")


@pytest.mark.parametrize(
    ("said", "answer", "is_exact", "does_begin"),
    [
        ("Yes.", "yes", True, True),
        (" K  1 M ", "K 1 M", True, True),
        ("yes, it is", "yes", False, True),
        ("yesterday", "yes", False, False),
        ("no", "yes", False, False),
        ("", "yes", False, False),
    ],
)
def test_answers_are_compared_as_documented(said, answer, is_exact, does_begin):
    assert (exact(said, answer), begins(said, answer)) == (is_exact, does_begin)


def test_points_that_lie_on_one_another_are_told_apart():
    """Filled circles hid all plans but one wherever several had the same tokens and accuracy."""
    rows = tuple(Row(f"plan {i}", None, 10, 9, 0, 0, 32.0, *[1.0] * 4) for i in range(20))
    axes, *_ = Comparison(rows, "task", "llava", 8, 10, {}).figure().axes
    points = [line for line in axes.lines if str(line.get_marker()) in "osD^vPX*"]
    assert len(points) == 20
    assert len({(point.get_marker(), point.get_color()) for point in points}) == 20
    assert {point.get_markerfacecolor() for point in points} == {"none"}


def test_rows_of_one_plan_are_one_curve():
    """Every budget had a colour of its own, so that no plan could be followed."""
    plans = {
        "unpruned": None,
        "mine 0.5": "mine, keep 0.5 on average",
        "mine 0.25": "mine, keep 0.25 on average",
        "divprune 0.5": "divprune, keep 0.5 on average",
        "weight 0.2": "weight 0.2",
        "weight 0.8": "weight 0.8",
    }
    rows = tuple(
        Row(name, plan, 10, 9, 0, 0, 64.0 / (1 + i), *[1.0] * 4)
        for i, (name, plan) in enumerate(plans.items())
    )
    figure = Comparison(rows, "task", "llava", 8, 10, {}).figure()
    points = [line for line in figure.axes[0].lines if str(line.get_marker()) in "osD^vPX*"]
    assert [len(line.get_xdata()) for line in points] == [1, 2, 1, 1, 1]
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["Pareto-optimal", "unpruned", "mine", *list(plans)[3:]]


def test_what_was_skipped_is_printed():
    rows = (Row("unpruned", None, 10, 9, 0, 0, 64.0, *[1.0] * 4),)
    skipped = (Skipped("line 3", "no picture"),)
    shown = str(Comparison(rows, "task", "llava", 8, 10, {}, skipped))
    assert "1 of the questions were skipped: line 3: no picture" in shown


def test_a_comparison_of_0_1_is_read_and_saved_as_it_was(tmp_path):
    saved = Comparison.load(SAMPLES / "comparison.json")
    assert isinstance(saved.rows[2], Row)
    saved.save(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == {**json.loads((SAMPLES / "comparison.json").read_text()), "skipped": []}
