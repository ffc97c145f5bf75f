"""The whole-model bench: the order of its cases, no time without parity, and its files."""

import json
import sys
from pathlib import Path

import bench_model
import model_parity
import pytest
import random_models
import report
import torch
from bench_dry import dry, wrong_rows
from report import FLASH, NATIVE, PACKED, PADDED, UNPATCHED

from vtfast.runtime.state import ForwardState

LLAVA, QWEN = random_models.TINY


@pytest.fixture(scope="module")
def built():
    return {s.name: s.build("cpu", torch.float32) for s in random_models.TINY}


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.5, 1.2, 0.8, 0.5], 64.0),
        ([1.5, 0.9, 1.1, 0.9], 90.5),  # what wins once and then loses has not won yet
        ([0.9, 0.8, 0.7, 0.6], 16.0),
        ([1.5, 1.4, 1.3, 1.0], None),
    ],
    ids=["between", "last-loss", "never-lost", "never-won"],
)
def test_the_break_even_is_after_the_last_loss(ratios, expected):
    sizes = [16, 32, 128, 256] if expected == 64.0 else [16, 32, 64, 128]
    found = bench_model.break_even(list(zip(sizes, ratios, strict=True)))
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_the_core_grid_comes_first_and_both_models_take_turns():
    order = list(bench_model.cases(random_models.SUBJECTS["cuda"]))
    core = order[:16]
    assert {(c.preset, c.keep, c.batch) for c in core} == {
        (preset, keep, batch)
        for preset in ("divprune", "divprune+random")
        for keep in (0.5, 0.25)
        for batch in (1, 8)
    }
    assert [c.subject.name for c in core] == ["llava-1.5-7b", "qwen2.5-vl-7b"] * 8
    names = [case.name for case in order]
    assert len(set(names)) == len(names)
    assert {c.preset for c in order} == {"divprune", "divprune+random", "fastv", "random"}
    assert {c.tokens for c in order if c.subject.name == QWEN.name} >= {1024, 4096, 16384}
    assert {c.batch for c in order} == {1, 8, 32, None}
    assert {c.keep for c in order} == {0.5, 0.25, 0.1}


@pytest.fixture
def script(monkeypatch, tmp_path, capsys, built):
    """Run bench_model at tiny sizes on models built already: exit code, record, what it said."""

    def run(*options):
        path = tmp_path / "out.json"
        command = ["bench_model.py", "--device", "cpu", "--tiny", "--rounds", "1"]
        monkeypatch.setattr(sys, "argv", [*command, "--json", str(path), *options])
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
        monkeypatch.setattr(bench_model.Bench, "model", lambda bench, subject: built[subject.name])
        code = bench_model.main()
        said = capsys.readouterr()
        return code, json.loads(path.read_text()) if path.exists() else {}, said

    return run


CASE = "llava-1.5-7b: divprune+random 0.5, b8"


def test_without_parity_nothing_is_timed_and_the_exit_code_is_1(script, monkeypatch):
    monkeypatch.setattr(ForwardState, "_take", wrong_rows)
    code, record, said = script("--only", CASE)
    (row,) = record["rows"]
    assert code == 1
    assert row["red"]
    assert row["ways"] == {}
    assert "RED" in said.err
    assert " of unpatched, " not in said.err
    monkeypatch.undo()


def test_a_break_even_without_parity_is_none(script, monkeypatch):
    monkeypatch.setattr(ForwardState, "_take", wrong_rows)
    code, record, _ = script("--only", "llava-1.5-7b: divprune 0.25, break-even")
    (row,) = record["rows"]
    assert (code, row["points"]) == (1, [])
    assert "break_even" not in row


def test_a_model_that_cannot_be_run_is_red_and_one_too_large_is_not(script, monkeypatch):
    for error, code in ((RuntimeError("no kernel"), 1), (torch.OutOfMemoryError("40 GiB"), 0)):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr(model_parity, "disagreements", fail)
        found, record, said = script("--only", CASE)
        assert found == code
        assert str(error) in said.err
        assert record["rows"][0]["ways"] == {}
        Path(sys.argv[sys.argv.index("--json") + 1]).unlink()


def test_a_run_stops_at_its_limit_and_the_next_goes_on(script):
    code, record, said = script("--only", CASE, "--seconds", "0")
    assert (code, record["rows"]) == (0, [])
    assert record["left"] == {"model": [f"{CASE}, 576 tokens"]}
    assert "stopped at its limit" in said.err
    _, first, _ = script("--only", CASE)
    _, second, _ = script("--only", CASE)
    assert second["rows"] == first["rows"]
    assert second["left"] == {"model": []}
    assert [len(record["runs"]) for record in (first, second)] == [2, 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    return dry("model", out), out


def test_the_dry_run_leaves_json_markdown_and_logs(whole):
    done, out = whole
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "gpu_model.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {LLAVA.name, QWEN.name}
    timed = [row for row in rows if row["batch"]]
    for row in timed:
        for variant in (UNPATCHED, NATIVE, PADDED, PACKED):
            assert {"ttft_ms", "decode_ms", "kv_bytes", "operators"} <= set(row["ways"][variant])
        assert row["ways"][FLASH] == {"missing": "not installed"}
    searched = [row for row in rows if row["batch"] is None]
    assert searched
    assert all(len(row["points"]) == 2 for row in searched)
    text = (out / "gpu_model.md").read_text()
    assert "not installed" in text
    assert "worst: packed takes" in text
    assert (out / "logs" / "model.log").exists()
    assert timed[0]["ways"][UNPATCHED]["host_reads"] > 0


def test_plots_are_drawn_of_what_was_measured(whole, tmp_path):
    _, out = whole
    record = json.loads((out / "gpu_model.json").read_text())
    report.draw("model_x", record, True, tmp_path)
    for file, _ in report.plots("model_x", True).values():
        assert (tmp_path / file).stat().st_size > 5000
