"""The bench harness: no time without parity, nothing measured twice or lost, losses shown."""

import json
import sys
from itertools import pairwise

import harness
import pytest
import torch
from harness import Case, Variant
from parity import exactly


def double(x):
    return x * 2


def wrong(x):
    return x * 3


def refusing(x):
    raise RuntimeError("not for this device\nat all")


def case(name="one", ours=double, theirs=double, compiled=None):
    variants = [
        Variant("plain", double, "eager"),
        Variant("other", theirs, "fair"),
        Variant("absent", None, "fair", missing="not installed"),
        Variant("vtfast", ours, "vtfast"),
    ]
    if compiled:
        variants.append(Variant("compiled", harness.compiled(compiled), "compiled"))
    return Case(
        name=name,
        shape="8",
        dtype=torch.float32,
        make=lambda seed: (torch.arange(8.0) + seed,),
        variants=variants,
        gate=lambda inputs: exactly(inputs[0] + inputs[0]),
        nbytes=64,
    )


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """Run cases as a script would: its exit code, the record it wrote, what it printed."""

    def run(*cases, options=()):
        path = tmp_path / "out.json"
        command = ["bench_x.py", "--device", "cpu", "--tiny", "--rounds", "2", "--json", str(path)]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
        with pytest.raises(SystemExit) as ended:
            harness.main({"x": lambda device, tiny: cases}, "")
        return ended.value.code, json.loads(path.read_text()), capsys.readouterr().err

    return run


def timed(record):
    return {name for row in record["rows"] for name, way in row["ways"].items() if "call" in way}


def test_equal_answers_are_timed(bench):
    code, record, said = bench(case())
    assert code == 0
    assert timed(record) == {"plain", "other", "vtfast"}
    assert "geometric mean" in said


def test_plain_calls_in_a_row_have_different_inputs(bench):
    """Random picks were timed with one seed, and top-k with scores whose order a CPU had learnt."""
    given = []

    def noted(x):
        given.append(x[0].item())
        return double(x)

    bench(case(ours=noted))
    turns = given[1:]  # the first is checked
    assert all(number != following for number, following in pairwise(turns))
    assert len(set(turns)) > 2


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_a_wrong_answer_is_red_and_nothing_is_timed(bench, who):
    code, record, said = bench(case(**{who: wrong}))
    assert code == 1
    assert timed(record) == set()
    assert "differs first at (1,)" in said
    assert "x the best" not in said


def test_a_red_case_does_not_stop_the_others(bench):
    code, record, _ = bench(case("a", ours=wrong), case("b"))
    assert code == 1
    assert [bool(row["red"]) for row in record["rows"]] == [True, False]
    assert timed(record) == {"plain", "other", "vtfast"}


def test_a_red_case_measured_earlier_is_still_red(bench):
    bench(case("a", ours=wrong))
    code, record, _ = bench(case("a"), case("b"))
    assert code == 1
    assert len(record["rows"]) == 2


def test_vtfast_must_not_raise(bench):
    code, record, said = bench(case(ours=refusing))
    assert code == 1
    assert timed(record) == set()
    assert "vtfast: RuntimeError: not for this device" in said


def test_a_baseline_that_raises_is_not_compared_and_is_named(bench):
    code, record, said = bench(case(theirs=refusing))
    assert code == 0
    assert timed(record) == {"plain", "vtfast"}
    assert "x: other: RuntimeError: not for this device\n" in said


def test_a_baseline_that_is_not_installed_keeps_its_place(bench):
    _, record, said = bench(case())
    assert record["rows"][0]["ways"]["absent"] == {"role": "fair", "missing": "not installed"}
    assert "x: absent: not installed" in said


def test_a_measured_case_is_not_measured_again(bench):
    _, before, _ = bench(case("a"))
    _, after, _ = bench(case("a", ours=wrong), case("b"))
    assert after["rows"][0] == before["rows"][0]
    assert [row["run"] for row in after["rows"]] == [0, 1]
    assert len(after["runs"]) == 2


@pytest.mark.parametrize("fact", ["device", "sources"])
def test_figures_of_another_device_or_other_sources_are_not_continued(bench, monkeypatch, fact):
    bench(case("a"))
    facts = harness.machine.header("cpu")
    monkeypatch.setattr(harness.machine, "header", lambda device: {**facts, fact: "another"})
    _, record, said = bench(case("b"))
    assert [row["case"] for row in record["rows"]] == ["b"]
    assert "begun anew" in said


def test_a_run_that_stops_at_its_limit_says_what_is_left_and_is_continued(bench):
    code, record, said = bench(case("a"), case("b"), options=["--seconds", "0"])
    assert code == 0
    assert (record["rows"], record["left"]) == ([], {"x": ["a", "b"]})
    assert "stopped at its limit, left: ['a', 'b']" in said
    code, record, _ = bench(case("a"), case("b"))
    assert code == 0
    assert ([row["case"] for row in record["rows"]], record["left"]) == (["a", "b"], {"x": []})


def test_no_case_begins_that_would_not_end_in_time(bench, monkeypatch):
    """The longest case so far is what the next one is expected to take."""
    clock = iter([0.0, 10.0, 10.0, 20.0])
    monkeypatch.setattr(harness, "START", 0.0)
    monkeypatch.setattr(harness.time, "monotonic", lambda: next(clock, 20.0))
    _, record, _ = bench(case("a"), case("b"), options=["--seconds", "19"])
    assert record["left"] == {"x": ["b"]}


def test_a_compiled_variant_is_timed_together_with_the_others(bench):
    _, before, _ = bench(case("a", compiled=double), case("b"))
    assert "compiled" not in before["rows"][0]["ways"]
    _, after, _ = bench(case("a", compiled=double), case("b"), options=["--compiled"])
    first, second = after["rows"]
    assert "call" in first["ways"]["compiled"]
    assert [first["run"], second["run"]] == [1, 0]
    assert second == before["rows"][1]


def test_a_wrong_compiled_variant_is_red(bench):
    code, record, _ = bench(case("a", compiled=wrong), options=["--compiled"])
    assert code == 1
    assert timed(record) == set()


def test_a_check_times_nothing_and_sees_what_is_wrong(bench):
    code, record, _ = bench(case("a"), case("b", ours=wrong), options=["--check"])
    assert code == 1
    assert timed(record) == set()
    assert [bool(row["red"]) for row in record["rows"]] == [False, True]
