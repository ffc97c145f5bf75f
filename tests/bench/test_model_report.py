"""What is said of whole models: the worst cases always, and GPUs alone in the README."""

import gpu_model
import model_figures
import model_report
from prefills import NATIVE, PACKED, PADDED, UNPATCHED


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


def test_the_case_that_is_farthest_beyond_native_is_profiled_if_beyond_5_percent():
    rows = [a_row("a", 1.06), a_row("b", 1.2), {**a_row("c", 9.0), "red": {"x": "wrong"}}]
    assert gpu_model.slowest(rows) == "b"
    assert gpu_model.slowest([a_row("a", 1.05)]) == ""


def test_the_last_lines_are_the_worst_cases():
    worst, native, slow = model_figures.last_lines([a_row("a", 1.0, 1.3), a_row("b", 1.1, 0.4)])
    assert "1.30 times an unpatched prefill (a)" in worst
    assert "1.10 times a native prefill (b)" in native
    assert slow.startswith("over 1.05 times native: b (")


def a_gpu_record(rows):
    run = {"device": "NVIDIA Z", "driver": "1", **dict.fromkeys(("torch", "triton", "commit"), "?")}
    return {"runs": [{**run, "transformers": "?"}], "rows": rows, "left": {}}


def gpu_row(case, of_unpatched, **facts):
    row = {**a_row(case, 1.02, of_unpatched), "batch": 8, **facts}
    other = {**row["ways"][PACKED], "ttft_ms": {"median": 2.0, "p20": 2.0, "p80": 2.0}}
    row["ways"] |= dict.fromkeys((UNPATCHED, NATIVE, PADDED), other)
    return row


def test_the_readme_shows_gpus_alone_and_says_so_where_there_is_none():
    cpu = a_gpu_record([gpu_row("a", 0.5)])
    cpu["runs"][0]["device"] = "Z (CPU)"
    assert model_report.readme_block({"model_cpu": cpu}).startswith("**No whole model has been")
    assert model_report.readme_block({}).startswith("**No whole model has been")
    assert model_report.docs_block({"model_cpu": cpu}).startswith("**No whole model has been")
    both = {"model_z": a_gpu_record([gpu_row("a", 0.5)]), "model_cpu": cpu}
    assert "Z (CPU)" not in model_report.readme_block(both)
    assert "No whole model" not in model_report.readme_block(both)


def test_the_readme_always_has_the_case_that_is_worst():
    """Also where it is not among the main ones; and what is red is said."""
    rows = [
        gpu_row("main", 0.5),
        gpu_row("worst", 1.25, keep=0.1, batch=1, preset="divprune"),
        {**gpu_row("red", 9.0), "red": {"packed": "wrong"}, "ways": {}},
    ]
    said = model_report.readme_block({"model_z": a_gpu_record(rows)})
    assert "random weights, true shapes" in said
    assert "| m | divprune 0.1 (worst of 2 cases) | 1 | 8 → 4 | 2 | 2 | 1 | 0.80 | 1.02 |" in said
    assert "| m | p 0.5 | 8 | 8 → 4 | 2 | 2 | 1 | 2.00 | 1.02 |" in said
    assert "RED: 1 cases" in said


def test_the_readme_says_where_a_plan_breaks_even():
    found = {"op": "model", "case": "m: p 0.5, break-even", "batch": None, "red": {},
             "points": [{"tokens": 16}, {"tokens": 32}]}  # fmt: skip
    for even, said in (
        (20.4, "packed wins from 20 visual tokens on"),
        (16.0, "packed wins from 16 visual tokens on, the fewest"),
        (None, "packed loses up to 32 visual tokens"),
    ):
        record = a_gpu_record([gpu_row("a", 0.5), {**found, "break_even": even}])
        assert said in model_report.readme_block({"model_z": record})
