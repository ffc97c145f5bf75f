"""Reports of figures: ratios, tables, and the pages that must agree with the JSON."""

import json
import sys

import pytest
import report
from report import NATIVE, PACKED, PADDED, UNPATCHED

SPECS = {"slow": ([9.0], "eager"), "quick": ([2.0], "fair"), "vtfast": ([4.0], "vtfast")}


def row(case="one", op="x", red=(), metric="call", **specs):
    """A row with these medians, each variant with a role."""
    ways = {
        name: {"role": role, metric: {"median": ms, "p20": ms, "p80": ms}}
        for name, ((ms,), role) in (specs or SPECS).items()
    }
    return {"op": op, "case": case, "dtype": "float32", "run": 0, "nbytes": 8_000_000, "flops": 0,
            "red": dict(red), "ways": ways}  # fmt: skip


RUNS = [
    {
        **dict.fromkeys(("device", "torch", "triton", "transformers", "commit"), "?"),
        "ceilings": {"copy_gb_s": 10.0, "matmul_tflop_s": 0.1, "matmul_dtype": "float32"},
    }
]


def test_best_is_the_fastest_baseline_and_a_loss_is_a_loss():
    assert report.best(row(), "call") == ("quick", 2.0)
    assert report.times_faster(row(), report.BASELINES, "call") == 0.5
    assert report.times_faster(row(), ["eager"], "call") == 2.25


def test_a_variant_in_the_role_note_is_not_compared():
    noted = row(floor=([1.0], "note"), **SPECS)
    assert report.best(noted, "call") == ("quick", 2.0)


def test_only_times_of_one_metric_are_compared():
    """vtfast's cold time is not compared with a baseline that has none."""
    mixed = row()
    mixed["ways"]["vtfast"]["cold"] = {"median": 1.0}
    assert report.metric_of(mixed) == "call"
    mixed["ways"]["slow"]["cold"] = {"median": 3.0}
    assert report.metric_of(mixed) == "cold"
    assert report.times_faster(mixed, report.BASELINES, "cold") == 3.0


def test_the_last_lines_are_the_geometric_mean_and_the_worst_case():
    fast = row("two", quick=([8.0], "eager"), vtfast=([4.0], "vtfast"))
    against_best, against_eager = report.last_lines([row(), fast, row("red", red={"x": "no"})])
    assert "geometric mean 1.00x over 2 cases, worst 0.50x (x, one)" in against_best
    assert "geometric mean 2.12x over 2 cases, worst 2.00x (x, two)" in against_eager


def test_a_rate_is_a_share_of_the_ceiling_that_is_nearer():
    assert report.of_ceiling(row(), RUNS) == ("2 GB/s", pytest.approx(0.2))
    heavy = {**row(), "flops": 200_000_000}
    assert report.of_ceiling(heavy, RUNS) == ("0.05 TFLOP/s", pytest.approx(0.5))


def test_a_table_shows_red_and_no_ratio():
    cells = report.op_row(row(red={"vtfast": "differs"}), RUNS)
    assert len(cells) == len(report.OP_HEAD)
    assert [cell for cell in cells if cell] == ["one", "float32", "RED: vtfast"]


@pytest.fixture
def page(monkeypatch, tmp_path):
    """README, docs and a folder of results of their own; no plots."""
    for name in ("README", "DOCS"):
        path = tmp_path / f"{name}.md"
        names = (report.OPS, report.MODELS, report.OVERHEAD, report.HOST, "status", "savings")
        blocks = [f"<!-- {n}: begin -->\nold\n<!-- {n}: end -->" for n in names]
        path.write_text("\n".join(["before", *blocks, "after\n"]))
        monkeypatch.setattr(report, name, path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def a_record(device):
    runs = [{**RUNS[0], "device": device}]
    return {"runs": runs, "rows": [row(), row("red", red={"vtfast": "no"})], "left": {}}


def test_readme_and_docs_show_what_was_measured():
    assert report.disagreements(report.RESULTS) == []


def test_pages_that_disagree_with_the_figures_are_named(page):
    (page / "cpu.json").write_text(json.dumps(a_record("Z (CPU)")))
    assert [line.split(" ")[0] for line in report.disagreements(page)] == [
        "README.md", "DOCS.md", "docs/speedup_cpu.png"
    ]  # fmt: skip


def test_a_report_makes_them_agree_and_leaves_the_rest_alone(page, monkeypatch):
    (page / "cpu.json").write_text(json.dumps(a_record("Z (CPU)")))
    monkeypatch.setattr(sys, "argv", ["report.py"])
    assert report.main() == 0
    texts = [(page / name).read_text() for name in ("README.md", "DOCS.md")]
    assert all(text.startswith("before\n") and text.endswith("\nafter\n") for text in texts)
    assert "compiled and tested without a GPU; not yet timed on one" in texts[0]
    assert "| x | 2, 1 RED | 0.50 | 0.50 | 2.25 | 2.25 |" in texts[1]
    assert (page / "speedup_cpu.png").stat().st_size > 5000
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0


def test_without_a_gpu_the_pages_say_so_plainly():
    cpu, gpu = a_record("Z (CPU)"), a_record("NVIDIA Z")
    none = report.NO_GPU.format("op")
    assert none in report.block_of({"cpu": cpu}, False)
    assert none in report.block_of({}, False)
    assert none not in report.block_of({"cpu": cpu, "z": gpu}, False)
    assert "not yet timed on one" in report.status([cpu])
    assert "timed on NVIDIA Z" in report.status([cpu, gpu])


def test_a_page_without_its_markers_is_refused(page):
    report.README.write_text("nothing")
    with pytest.raises(ValueError, match="expected one <!-- status: begin -->"):
        report.pages(page)


def a_row(case, of_native, of_unpatched=0.5):
    """A measured row with these ratios of the packed layout."""
    ms = {"median": 1.0, "p20": 1.0, "p80": 1.0}
    cost = dict.fromkeys(("launches", "operators", "host_reads", "allocations"), 1)
    ratios = {
        "of_native": {**ms, "median": of_native},
        "of_unpatched": {**ms, "median": of_unpatched},
    }
    way = {"ttft_ms": ms, "decode_ms": ms, "peak_bytes": 1, "kv_bytes": 1, **cost, **ratios}
    return {
        **{"op": "model", "case": case, "model": "m", "preset": "p", "keep": 0.5, "batch": 1},
        **{"tokens": 8, "average": 4.0, "encode_ms": 1.0, "red": {}, "run": 0},
        "ways": {PACKED: way},
    }


def test_the_last_lines_name_the_worst_cases():
    worst, native = report.worst_lines([a_row("a", 1.0, 1.3), a_row("b", 1.1, 0.4)])
    assert "1.30 times an unpatched prefill (a)" in worst
    assert "1.10 times a native prefill (b)" in native


def a_gpu_record(rows):
    run = {"device": "NVIDIA Z", "driver": "1", **dict.fromkeys(("torch", "triton", "commit"), "?"),
           "command": "python bench/x.py"}  # fmt: skip
    return {"runs": [{**run, "transformers": "?"}], "rows": rows, "left": {}}


def gpu_row(case, of_unpatched, **facts):
    row = {**a_row(case, 1.02, of_unpatched), "batch": 8, **facts}
    other = {**row["ways"][PACKED], "ttft_ms": {"median": 2.0, "p20": 2.0, "p80": 2.0}}
    row["ways"] |= dict.fromkeys((UNPATCHED, NATIVE, PADDED), other)
    return row


def test_the_first_table_is_of_the_default_plan_on_the_first_device_that_has_it():
    other = gpu_row("a", 0.9, preset="divprune", batch=1)
    half = gpu_row("b", 0.5, preset="divprune+random", batch=1)
    quarter = gpu_row("c", 0.25, preset="divprune+random", batch=1, keep=0.25, average=2.0)
    said = report.savings([a_gpu_record([other]), a_gpu_record([other, quarter, half])])
    assert "| share of unpatched | full | keep 0.5 | keep 0.25 |" in said
    assert "| visual tokens, average of layers | 1.00 | 0.50 | 0.25 |" in said
    assert "| time to first token, pictures encoded before | 1.00 | 0.50 | 0.25 |" in said
    assert "NVIDIA Z; `python bench/x.py`:" in said
    assert report.savings([a_gpu_record([other])]) == "Not measured yet."


def test_the_docs_name_the_worst_case_and_what_is_red():
    rows = [
        gpu_row("main", 0.5),
        gpu_row("worst", 1.25, keep=0.1, batch=1, preset="divprune"),
        {**gpu_row("red", 9.0), "red": {"packed": "wrong"}, "ways": {}},
    ]
    said = report.block_of({"model_z": a_gpu_record(rows)}, True)
    assert "Random weights, true shapes" in said
    assert "| main | 4 of 8 | 2 |  | 2 | 2 | 1 | 1-1 | 0.50 | 1.02 | 1 | ok |" in said
    assert "worst: packed takes 1.25 times an unpatched prefill (worst)" in said
    assert "RED: packed: wrong" in said


def test_the_docs_say_where_a_plan_breaks_even():
    found = {"op": "model", "case": "m: p 0.5, break-even", "batch": None, "red": {}, "ways": {},
             "points": [{"tokens": 16}, {"tokens": 32}]}  # fmt: skip
    for even, said in (
        (20.4, "packed wins from 20 visual tokens on"),
        (16.0, "packed wins from 16 visual tokens on, the fewest"),
        (None, "packed loses up to 32 visual tokens"),
    ):
        record = a_gpu_record([gpu_row("a", 0.5), {**found, "break_even": even}])
        assert said in report.block_of({"model_z": record}, True)


RATIO = {"p20": 0.5, "p80": 2.0}


def overhead_row(batch, padded, packed, share=0.01):
    ratios = {"padded": padded, "packed": packed}
    found = {f"{way}_of_native": RATIO | {"median": ratio} for way, ratio in ratios.items()}
    times = {f"{way}_ms": {"median": 1.0} for way in ("unpatched", "native")}
    name = {"op": "overhead", "case": f"b{batch}, a plan", "plan": "a plan", "batch": batch}
    return name | {"rounds": 7, "select_and_gather": share} | found | times


@pytest.mark.parametrize(
    ("found", "targets"),
    [
        (overhead_row(1, 1.05, 1.03), []),
        (overhead_row(4, 1.05, 0.95), []),
        (overhead_row(1, 1.06, 1.0), ["padded 1.060"]),
        (overhead_row(1, 1.0, 1.04), ["packed 1.040"]),
        (overhead_row(4, 1.0, 0.96), ["packed 0.960"]),
        (overhead_row(1, 1.0, 1.0, 0.021), ["select + gather 2.1%"]),
        (overhead_row(4, 1.1, 1.1, 0.5), ["padded 1.100", "packed 1.100", "select + gather 50.0%"]),
    ],
)
def test_a_missed_target_is_reported(found, targets):
    said = report.missed(found)
    assert len(said) == len(targets)
    assert all(text.startswith(begin) for text, begin in zip(said, targets, strict=True))


def test_the_page_shows_every_case_and_which_targets_are_missed():
    run = dict.fromkeys(("device", "torch", "transformers", "commit", "note"), "x")
    rows = [overhead_row(1, 1.0, 1.0), overhead_row(4, 1.0, 1.2)]
    page = report.overhead({"runs": [run], "rows": rows})
    assert "| 1 | a plan | 1 | 1 | 1.000 | 0.50-2.00 | 1.000 |" in page
    assert "- b4, a plan: packed 1.200 times native, at most 0.95 wanted" in page
