"""The GPU commands, dry: the same scripts at tiny sizes on the CPU, their limits and resuming."""

import json
import subprocess
import sys
from pathlib import Path

import device_checks
import gpu_check
import gpu_ops
import machine
import oracles
import pytest
import torch
from bench_dry import dry
from op_calls import op_calls
from repository import ROOT
from steps import Clock, Log, run_step

import vtfast.ops


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """One dry run of all op benches, and where it wrote."""
    out = tmp_path_factory.mktemp("ops")
    return dry("gpu_ops.py", out), out


def record(out: Path, name: str = "gpu_ops.json") -> dict:
    return json.loads((out / name).read_text())


def test_all_op_benches_run_and_leave_json_markdown_and_logs(ops):
    done, out = ops
    assert done.returncode == 0, done.stdout + done.stderr
    found = record(out)
    assert {row["op"] for row in found["rows"]} == set(gpu_ops.ORDER)
    assert not any(row["red"] or "call" not in row["ways"]["vtfast"] for row in found["rows"])
    assert not any(found["left"].values())
    assert "geometric mean" in (out / "gpu_ops.md").read_text()
    assert len(list((out / "logs").iterdir())) == len(gpu_ops.ORDER)


def test_every_op_has_an_eager_and_a_fair_rival_and_two_compiled_cases_or_more(ops):
    _, out = ops
    for op in gpu_ops.ORDER:
        rows = [row for row in record(out)["rows"] if row["op"] == op]
        roles = [{way["role"] for way in row["ways"].values()} for row in rows]
        assert all({"eager", "fair", "vtfast"} <= some for some in roles), op
        assert sum("compiled" in some for some in roles) >= 2, op


def test_op_benches_go_on_with_what_was_carried_over(ops, tmp_path):
    """All is measured already, so nothing is again, in another folder."""
    _, out = ops
    done = dry("gpu_ops.py", tmp_path, "--resume", str(out / "gpu_ops.json"), "--ops", "topk")
    assert done.returncode == 0, done.stderr
    assert record(tmp_path)["rows"] == record(out)["rows"]
    assert len(record(tmp_path)["runs"]) == len(record(out)["runs"]) + 1


def test_op_benches_stop_at_their_limit_and_say_what_is_left(tmp_path):
    done = dry("gpu_ops.py", tmp_path, "--seconds", "0")
    assert done.returncode == 0
    assert f"left for the next run: {gpu_ops.ORDER[0]}" in done.stdout


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "1 / 0"])
def test_a_bench_that_breaks_is_red(tmp_path, monkeypatch, capsys, end):
    monkeypatch.setattr(gpu_ops, "HERE", tmp_path)
    (tmp_path / "bench_topk.py").write_text(end)
    monkeypatch.setattr(sys, "argv", ["gpu_ops.py", "--ops", "topk", "--out", str(tmp_path)])
    assert gpu_ops.main() == 1
    assert "BROKEN: bench_topk.py" in capsys.readouterr().out


def test_a_red_row_of_an_earlier_run_is_still_red(ops, tmp_path):
    _, out = ops
    found = record(out)
    found["rows"][0]["red"] = {"vtfast": "differs"}
    (tmp_path / "gpu_ops.json").write_text(json.dumps(found))
    done = dry("gpu_ops.py", tmp_path, "--seconds", "0")
    assert done.returncode == 1
    assert "RED: vtfast" in done.stdout


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    return dry("gpu_check.py", out), out


def test_all_checks_run_and_leave_json_markdown_and_logs(checks):
    done, out = checks
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {n: step["status"] for n, step in record(out, "gpu_check.json")["steps"].items()}
    assert verdicts.pop("memcheck") == verdicts.pop("racecheck") == "not run"
    assert set(verdicts.values()) == {"passed"}, verdicts
    assert "| check: models | passed |" in (out / "gpu_check.md").read_text()
    assert len(list((out / "logs").iterdir())) == len(verdicts)


def test_checks_that_passed_are_not_repeated(checks, tmp_path):
    _, out = checks
    done = dry("gpu_check.py", tmp_path, "--resume", str(out / "gpu_check.json"))
    assert done.returncode == 0, done.stderr
    assert ": passed" not in done.stderr
    assert record(tmp_path, "gpu_check.json") == record(out, "gpu_check.json")


STEPS = {
    "green": "print('ok this')",
    "red": "print('RED that: differs'); raise SystemExit(1)",
    "slow": "import time; print('ok', flush=True); time.sleep(60)",
    "red, then slow": "import time; print('x FAILED [ 1%]', flush=True); time.sleep(60)",
    "absent": None,
}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Run `gpu_check` with steps of a line of Python each: exit code and verdicts."""

    def run(*names, seconds="100"):
        chosen = [
            gpu_check.Step(n, [sys.executable, "-c", STEPS[n] or ""], 2.0, "" if STEPS[n] else "no")
            for n in names
        ]
        monkeypatch.setattr(gpu_check, "steps", lambda *_: chosen)
        options = ["--dry", "--out", str(tmp_path), "--seconds", seconds]
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
        code = gpu_check.main()
        steps = record(tmp_path, "gpu_check.json")["steps"]
        return code, {name: step["status"] for name, step in steps.items()}

    return run


def test_a_failed_step_is_red_and_the_others_go_on(check):
    assert check("red", "green") == (1, {"red": "failed", "green": "passed"})


def test_a_step_out_of_time_is_neither_red_nor_passed(check):
    assert check("slow") == (0, {"slow": "out of time"})


def test_a_test_that_failed_before_the_time_was_up_is_red(check):
    assert check("red, then slow") == (1, {"red, then slow": "failed"})


def test_what_is_not_installed_is_named_and_not_red(check):
    assert check("absent") == (0, {"absent": "not run"})


def test_without_pytest_its_steps_are_not_run_and_the_others_are(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    steps = {step.name: step.missing for step in gpu_check.steps("cuda", tmp_path, False)}
    tests = {name for name in steps if name.startswith("tests: ")}
    assert {steps[name] for name in tests} == {"pytest and hypothesis not installed"}
    others = {name: why for name, why in steps.items() if name not in tests and why}
    assert set(others) <= {"memcheck", "racecheck"}


def test_every_op_has_its_native_tests_its_gate_and_a_small_call():
    files = {
        path.stem.removeprefix("test_") for path in (ROOT / "tests" / "kernels").glob("test_*.py")
    }
    assert set(gpu_check.OP_TESTS) <= files
    scripts = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    others = {"information", "launch", "model", "overhead"}  # not of one op on a device
    assert set(gpu_ops.ORDER) == scripts - others
    ops = {name.partition(",")[0] for name in op_calls("cpu")}
    assert ops == set(vtfast.ops.__all__) - {"Ragged"}


def test_no_check_begins_when_the_time_is_up(check):
    assert check("green", seconds="1") == (0, {"green": "not begun"})


def test_a_step_that_was_not_passed_is_tried_again(check):
    assert check("green", seconds="1")[1] == {"green": "not begun"}
    assert check("green")[1] == {"green": "passed"}


def test_a_step_ends_with_its_children_at_its_limit(tmp_path):
    child = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {!r}])"
    inner = f"import time, pathlib\ntime.sleep(3)\npathlib.Path({str(tmp_path)!r}, 'lived').touch()"
    step = run_step("x", [sys.executable, "-c", child.format(inner)], 1.0, Log(tmp_path))
    assert (step["status"], step["code"]) == ("out of time", None)
    assert 0.9 < step["seconds"] < 2.5
    assert Clock(0.5).left() <= 0.5
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3)"])
    assert not (tmp_path / "lived").exists()


def test_the_fixtures_are_what_python_integers_give():
    written = json.loads(device_checks.FIXTURES.read_text())
    for (lengths, keep, seed, keys, stream), found in zip(
        device_checks.RANDOM_CASES, written, strict=True
    ):
        names = range(len(lengths)) if keys is None else keys
        rows = oracles.random_select(lengths, keep, seed, names, stream)
        assert (found["lengths"], found["keep"]) == (lengths, keep)
        assert found["first"] == rows[: device_checks.SHOWN]
        assert found["sha256"] == device_checks.digest(rows)


def test_other_picks_than_the_written_ones_are_red(monkeypatch):
    lengths, keep, seed, keys, stream = device_checks.RANDOM_CASES[0]
    others = [(lengths, keep, seed + 1, keys, stream), *device_checks.RANDOM_CASES[1:]]
    monkeypatch.setattr(device_checks, "RANDOM_CASES", others)
    verdicts = [bool(wrong) for _, wrong in device_checks.fixtures("cpu")]
    assert verdicts == [True, False, False, False, False, False]


def test_an_op_that_reads_the_device_back_is_red(monkeypatch):
    calls = {"sound": (torch.neg, [torch.ones(2)]), "bad": (torch.Tensor.tolist, [torch.ones(2)])}
    monkeypatch.setattr(device_checks, "op_calls", lambda device: calls)
    assert [bool(wrong) for _, wrong in device_checks.reads("cpu")] == [False, True]


def test_another_source_is_another_state(tmp_path, monkeypatch):
    before = machine.sources()
    for folder in machine.MEASURED:
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.sources() == before
    (tmp_path / "bench").unlink()
    (tmp_path / "bench").mkdir()
    assert machine.sources() != before
