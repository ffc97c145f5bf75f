"""What is said about figures: ratios, tables, and the pages that must agree with the JSON."""

import sys

import figures
import pytest
import report
from timing import MAX_SETS, call_samples, sets_needed, summary

SPECS = {"slow": ([9.0], "eager"), "quick": ([2.0], "fair"), "vtfast": ([4.0], "vtfast")}


def row(case="one", op="x", red=(), metric="call", **specs):
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


def test_best_is_the_fastest_baseline_and_a_loss_is_a_loss():
    assert figures.best(row(), "call") == ("quick", 2.0)
    assert figures.times_faster(row(), figures.BASELINES, "call") == 0.5
    assert figures.times_faster(row(), ["eager"], "call") == 2.25


def test_what_is_only_noted_competes_with_nobody():
    noted = row(floor=([1.0], "note"), **SPECS)
    assert figures.best(noted, "call") == ("quick", 2.0)


def test_like_is_compared_with_like():
    """A baseline without a cold time is not put beside our cold time."""
    mixed = row()
    mixed["ways"]["vtfast"]["cold"] = {"median": 1.0}
    assert figures.metric_of(mixed) == "call"
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


def test_a_call_on_a_cpu_is_timed_by_processor_time(monkeypatch):
    """So that it does not take longer because others use the machine."""
    spent = [0.0]

    def call():
        spent[0] += 0.5

    monkeypatch.setattr("time.process_time", lambda: spent[0])
    assert call_samples({"a": call}, "cpu", rounds=4) == {"a": [500.0] * 3}  # slow: fewer rounds


def test_a_summary_is_the_median_with_its_20th_and_80th_percentile():
    assert summary(range(1, 12)) == {"median": 6, "p20": 3, "p80": 9}
    assert summary([5.0]) == {"median": 5.0, "p20": 5.0, "p80": 5.0}


@pytest.mark.parametrize(
    ("nbytes", "sets"), [(10, 31), (11, 29), (1000, 2), (1, MAX_SETS), (0, MAX_SETS)]
)
def test_rotated_inputs_are_three_times_the_cache(nbytes, sets):
    assert sets_needed(nbytes, 103) == sets


@pytest.fixture
def page(monkeypatch, tmp_path):
    """README and docs of their own, and no plots missing."""
    for name in ("README", "DOCS"):
        path = tmp_path / f"{name}.md"
        names = (report.NAME, report.model_report.NAME, report.overhead_figures.NAME)
        blocks = [f"<!-- {n}: begin -->\nold\n<!-- {n}: end -->" for n in names]
        path.write_text("\n".join(["before", *blocks, "after\n"]))
        monkeypatch.setattr(report, name, path)
    return tmp_path


def a_record(device):
    runs = [{**RUNS[0], "device": device}]
    return {"runs": runs, "rows": [row(), row("red", red={"vtfast": "no"})], "left": {}}


def test_readme_and_docs_show_what_was_measured():
    models = report.model_report.results(report.RESULTS)
    assert report.disagreements(report.results(), models) == []


def test_pages_that_disagree_with_the_figures_are_named(page):
    found = report.disagreements({"cpu": a_record("Z (CPU)")}, {})
    assert [line.split(" ")[0] for line in found] == [
        "README.md", "DOCS.md", "docs/speedup_cpu.png", "docs/roofline_cpu.png"
    ]  # fmt: skip


def test_a_report_makes_them_agree_and_leaves_the_rest_alone(page, monkeypatch):
    monkeypatch.setattr(report, "results", lambda: {"cpu": a_record("Z (CPU)")})
    monkeypatch.setattr(report.model_report, "results", lambda folder: {})
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
        report.pages({}, {})
