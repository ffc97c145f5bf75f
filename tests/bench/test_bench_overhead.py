"""What vtfast costs in a prefill: measured case by case, and its misses told."""

import json
import subprocess
import sys

import overhead_figures
import pytest
import report
from repository import ROOT

RATIO = {"p20": 0.5, "p80": 2.0}


def row(batch, padded, packed, share=0.01):
    ratios = {"padded": padded, "packed": packed}
    found = {f"{way}_of_native": RATIO | {"median": ratio} for way, ratio in ratios.items()}
    times = {f"{way}_ms": {"median": 1.0} for way in ("unpatched", "native")}
    name = {"op": "overhead", "case": f"b{batch}, a plan", "plan": "a plan", "batch": batch}
    return name | {"rounds": 7, "select_and_gather": share} | found | times


@pytest.mark.parametrize(
    ("found", "targets"),
    [
        (row(1, 1.05, 1.03), []),
        (row(4, 1.05, 0.95), []),
        (row(1, 1.06, 1.0), ["padded 1.060"]),
        (row(1, 1.0, 1.04), ["packed 1.040"]),
        (row(4, 1.0, 0.96), ["packed 0.960"]),
        (row(1, 1.0, 1.0, 0.021), ["select + gather 2.1%"]),
        (row(4, 1.1, 1.1, 0.5), ["padded 1.100", "packed 1.100", "select + gather 50.0%"]),
    ],
)
def test_a_missed_target_is_told(found, targets):
    said = overhead_figures.missed(found)
    assert len(said) == len(targets)
    assert all(text.startswith(begin) for text, begin in zip(said, targets, strict=True))


def test_the_page_shows_every_case_and_why_a_target_is_missed(tmp_path, monkeypatch):
    run = dict.fromkeys(("device", "torch", "transformers", "commit", "note"), "x")
    good, bad = row(1, 1.0, 1.0), row(4, 1.0, 1.2) | {"profile": "hashing takes it all"}
    (tmp_path / overhead_figures.FILE).write_text(json.dumps({"runs": [run], "rows": [good, bad]}))
    page = overhead_figures.block(tmp_path)
    assert "| 1 | a plan | 1 | 1 | 1.000 | 0.50-2.00 | 1.000 |" in page
    assert "- b4, a plan: packed 1.200 times native, at most 0.95 wanted" in page
    assert "hashing takes it all" in page
    assert report.results(tmp_path) == {}  # ops have other figures


def test_the_file_is_whole_after_every_case_and_is_gone_on_with(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "bench/bench_overhead.py", "--tiny", "--rounds", "1"]
    command += ["--only", "b1, divprune 0.1", "--json", str(file)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "divprune 0.1" in first.stdout
    assert "us a decoded token" in first.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [r["case"] for r in rows] == ["b1, divprune 0.1", "32 layers of 64"]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert json.loads(file.read_text())["rows"] == rows
