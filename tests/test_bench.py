"""The bench harness: no speed-up without parity, no figure twice, none lost, losses shown."""

import json
import sys
from importlib import import_module

import figures
import harness
import pytest
import report
import torch
from gpu_ops import ORDER
from harness import Case, Way
from parity import a_selection, exactly, farthest_each_time, nearly, rows_of_sorted
from timing import MAX_SETS, sets_needed, summary

SPECS = {"slow": ([9.0], "eager"), "quick": ([2.0], "fair"), "vtfast": ([4.0], "vtfast")}


def double(x):
    return x * 2


def wrong(x):
    return x * 3


def unable(x):
    raise RuntimeError("not for this device\nat all")


def case(name="one", ours=double, theirs=double, compiled=None):
    ways = [
        Way("plain", double, "eager"),
        Way("other", theirs, "fair"),
        Way("absent", None, "fair", missing="not installed"),
        Way("vtfast", ours, "vtfast"),
    ]
    if compiled:
        ways.append(Way("compiled", lambda compile: compile(compiled), "compiled"))
    return Case(
        name=name,
        shape="8",
        dtype=torch.float32,
        make=lambda seed: (torch.arange(8.0) + seed,),
        ways=ways,
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
            harness.main("x", lambda device, tiny: cases)
        return ended.value.code, json.loads(path.read_text()), capsys.readouterr().err

    return run


def timed(record):
    return {name for row in record["rows"] for name, way in row["ways"].items() if "wall" in way}


def row(case="one", op="x", red=(), metric="wall", **specs):
    """A row with these medians, each way with a role."""
    ways = {
        name: {"role": role, metric: {"median": ms, "p20": ms, "p80": ms}}
        for name, ((ms,), role) in (specs or SPECS).items()
    }
    return {"op": op, "case": case, "dtype": "float32", "run": 0, "nbytes": 8_000_000, "flops": 0,
            "red": dict(red), "ways": ways}  # fmt: skip


RUNS = [
    {
        **dict.fromkeys(("device", "torch", "triton", "commit"), "?"),
        "ceilings": {"copy_gb_s": 10.0, "matmul_tflop_s": 0.1, "matmul_dtype": "float32"},
    }
]


def test_equal_answers_are_timed(bench):
    code, record, said = bench(case())
    assert code == 0
    assert timed(record) == {"plain", "other", "vtfast"}
    assert "geometric mean" in said


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
    code, record, said = bench(case(ours=unable))
    assert code == 1
    assert timed(record) == set()
    assert "vtfast: RuntimeError: not for this device" in said


def test_a_baseline_that_raises_is_no_competitor_and_is_named(bench):
    code, record, said = bench(case(theirs=unable))
    assert code == 0
    assert timed(record) == {"plain", "vtfast"}
    assert "x: other: RuntimeError: not for this device\n" in said


def test_a_baseline_that_is_not_installed_keeps_its_place(bench):
    _, record, said = bench(case())
    assert record["rows"][0]["ways"]["absent"] == {"role": "fair", "missing": "not installed"}
    assert "x: absent: not installed" in said


def test_what_is_measured_is_not_measured_again(bench):
    _, before, _ = bench(case("a"))
    _, after, _ = bench(case("a", ours=wrong), case("b"))
    assert after["rows"][0] == before["rows"][0]
    assert [row["run"] for row in after["rows"]] == [0, 1]
    assert len(after["runs"]) == 2


@pytest.mark.parametrize("fact", ["device", "sources"])
def test_figures_of_another_device_or_other_sources_are_not_gone_on_with(bench, monkeypatch, fact):
    bench(case("a"))
    facts = harness.machine.header("cpu")
    monkeypatch.setattr(harness.machine, "header", lambda device: {**facts, fact: "another"})
    _, record, said = bench(case("b"))
    assert [row["case"] for row in record["rows"]] == ["b"]
    assert "begun anew" in said


def test_a_run_that_stops_at_its_limit_says_what_is_left_and_goes_on(bench):
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


def test_the_compiled_way_is_timed_together_with_the_others(bench):
    _, before, _ = bench(case("a", compiled=double), case("b"))
    _, after, _ = bench(case("a", compiled=double), case("b"), options=["--compiled", "only"])
    first, second = after["rows"]
    assert "wall" in first["ways"]["compiled"]
    assert [first["run"], second["run"]] == [1, 0]
    assert second == before["rows"][1]


def test_a_wrong_compiled_way_is_red(bench):
    code, record, _ = bench(case("a", compiled=wrong), options=["--compiled", "only"])
    assert code == 1
    assert timed(record) == set()


def test_compiled_ways_may_be_timed_with_all_the_others_at_once(bench):
    _, record, _ = bench(case("a", compiled=double), case("b"), options=["--compiled", "too"])
    assert [len(row["ways"]) for row in record["rows"]] == [5, 4]


def test_a_check_times_nothing_and_sees_what_is_wrong(bench):
    code, record, _ = bench(case("a"), case("b", ours=wrong), options=["--check"])
    assert code == 1
    assert timed(record) == set()
    assert [bool(row["red"]) for row in record["rows"]] == [False, True]


def test_best_is_the_fastest_baseline_and_a_loss_is_a_loss():
    assert figures.best(row(), "wall") == ("quick", 2.0)
    assert figures.times_faster(row(), figures.BASELINES, "wall") == 0.5
    assert figures.times_faster(row(), ["eager"], "wall") == 2.25


def test_what_is_only_noted_competes_with_nobody():
    noted = row(floor=([1.0], "note"), **SPECS)
    assert figures.best(noted, "wall") == ("quick", 2.0)


def test_like_is_compared_with_like():
    """A baseline without a cold time is not put beside our cold time."""
    mixed = row()
    mixed["ways"]["vtfast"]["cold"] = {"median": 1.0}
    assert figures.metric_of(mixed) == "wall"
    mixed["ways"]["slow"]["cold"] = {"median": 3.0}
    assert figures.metric_of(mixed) == "cold"
    assert figures.times_faster(mixed, figures.BASELINES, "cold") == 3.0


def test_the_last_lines_are_the_geometric_mean_and_the_worst_case():
    fast = row("two", quick=([8.0], "eager"), vtfast=([4.0], "vtfast"))
    against_best, against_eager = figures.last_lines([row(), fast, row("red", red={"x": "no"})])
    assert "geometric mean 1.00x over 2 cases, worst 0.50x (x, one)" in against_best
    assert "geometric mean 2.12x over 2 cases, worst 2.00x (x, two)" in against_eager


def test_a_rate_is_a_share_of_the_ceiling_that_is_nearer():
    assert figures.rate(row(), RUNS) == ("2 GB/s", "20%")
    heavy = {**row(), "flops": 200_000_000}
    assert figures.rate(heavy, RUNS) == ("0.05 TFLOP/s", "50%")


def test_a_table_shows_red_and_no_ratio():
    cells = figures.cells(row(red={"vtfast": "differs"}), RUNS)
    assert len(cells) == len(figures.HEAD)
    assert [cell for cell in cells if cell] == ["one", "float32", "RED: vtfast"]


def test_a_summary_is_the_median_with_its_20th_and_80th_percentile():
    assert summary(range(1, 12)) == {"median": 6, "p20": 3, "p80": 9}
    assert summary([5.0]) == {"median": 5.0, "p20": 5.0, "p80": 5.0}


@pytest.mark.parametrize(
    ("nbytes", "sets"), [(10, 31), (11, 29), (1000, 2), (1, MAX_SETS), (0, MAX_SETS)]
)
def test_rotated_inputs_are_three_times_the_cache(nbytes, sets):
    assert sets_needed(nbytes, 103) == sets


def test_exact_checks_see_one_bit_a_shape_and_a_nan():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert exactly(x)(x.clone()) == ""
    assert exactly(x)(x.index_fill(1, torch.tensor([1]), 9.0)) == "tensor 0 differs first at (0, 1)"
    assert exactly(x)(x[0]) == "tensor 0 has shape (2,), expected (2, 2)"
    assert exactly((x, x))((x, x * torch.nan)) == "tensor 1 differs first at (0, 0)"


def test_near_checks_see_what_is_off_and_what_is_nan():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert nearly(x, 1e-3)(x.float() + 5e-4) == ""
    assert nearly(x, 1e-3)(x + 2e-3) == "off by 0.002 at worst, 0.001 is allowed"
    assert "off by nan" in nearly(x, 1e-3)(x * torch.nan)


@pytest.mark.parametrize(
    "index", [[0, 2], [0, 1, 3, 3], [1, 0, 3, 4], [0, 3, 3, 4], [-1, 0, 3, 4], [0, 1, 3, 5]]
)
def test_a_selection_must_be_complete_distinct_ascending_and_inside(index):
    check = a_selection([3, 2], [2, 2])
    assert check(torch.tensor([0, 2, 3, 4])) == ""
    assert check(torch.tensor(index)) != ""


def test_sorted_rows_break_ties_by_position():
    scores = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0, 0.0])
    assert rows_of_sorted(scores, [4, 2], [2, 1]).tolist() == [1, 2, 4]
    assert rows_of_sorted(torch.ones(5000), [5000], [40]).tolist() == list(range(40))


def test_a_replay_sees_a_pick_that_is_not_the_farthest():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    check = farthest_each_time(torch.cat([x, x]), [4, 4], [3, 2])
    assert check(torch.tensor([3, 0, 2, 7, 4])) == ""
    assert check(torch.tensor([0, 3, 2, 7, 4])).startswith("segment 0: pick 0 is")
    assert check(torch.tensor([3, 0, 2, 7, 6])).startswith("segment 1: pick 1 is")
    assert check(torch.tensor([3, 0, 0, 7, 4])) == "segment 0: rows outside of it or repeated"
    assert check(torch.tensor([3, 0, 2, 7])) == "4 picks, expected 5"


def spoilt(x):
    """One number of it, the last, is another."""
    if not isinstance(x, torch.Tensor):
        return [*x[:-1], spoilt(x[-1])]
    x = x.clone()
    x.view(-1)[-1] -= 1 if not x.is_floating_point() else 0.05
    return x


@pytest.mark.parametrize("op", ORDER)
def test_the_gate_of_every_op_sees_one_wrong_number(op):
    """In the answer of vtfast, which passes as it is."""
    tiny = next(iter(import_module(f"bench_{op}").cases("cpu", True)))
    (way,) = (way for way in tiny.ways if way.role == "vtfast")
    inputs = tiny.make(0)
    check, answer = (way.gate or tiny.gate)(inputs), way.call(*inputs)
    assert check(answer) == ""
    assert check(spoilt(answer)) != ""


@pytest.fixture
def page(monkeypatch, tmp_path):
    """README and docs of their own, and no plots missing."""
    for name in ("README", "DOCS"):
        path = tmp_path / f"{name}.md"
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        monkeypatch.setattr(report, name, path)
    return tmp_path


def a_record(device):
    runs = [{**RUNS[0], "device": device}]
    return {"runs": runs, "rows": [row(), row("red", red={"vtfast": "no"})], "left": {}}


def test_readme_and_docs_show_what_was_measured():
    assert report.disagreements(report.results()) == []


def test_pages_that_disagree_with_the_figures_are_named(page):
    found = report.disagreements({"cpu": a_record("Z (CPU)")})
    assert [line.split(" ")[0] for line in found] == [
        "README.md", "DOCS.md", "docs/speedup_cpu.png", "docs/roofline_cpu.png"
    ]  # fmt: skip


def test_a_report_makes_them_agree_and_leaves_the_rest_alone(page, monkeypatch):
    monkeypatch.setattr(report, "results", lambda: {"cpu": a_record("Z (CPU)")})
    monkeypatch.setattr(sys, "argv", ["report.py"])
    assert report.main() == 0
    text = (page / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| x | 2, 1 RED | 0.50 | 0.50 | 2.25 | 2.25 |" in text
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0


def test_without_a_gpu_the_pages_say_so_plainly():
    cpu, gpu = a_record("Z (CPU)"), a_record("NVIDIA Z")
    for block in (report.readme_block, report.docs_block):
        assert report.NO_GPU in block({"cpu": cpu})
        assert report.NO_GPU in block({})
        assert report.NO_GPU not in block({"cpu": cpu, "z": gpu})


def test_a_page_without_its_markers_is_refused(page):
    report.README.write_text("nothing")
    with pytest.raises(ValueError, match="expected one <!-- op speed: begin -->"):
        report.pages({})
