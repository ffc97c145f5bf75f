"""The GPU commands, dry: the same scripts at tiny sizes on the CPU, their limits and resuming."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import gpu
import pytest
from bench_dry import dry
from op_calls import op_calls
from repository import ROOT

import vtfast.ops


def record(out: Path, name: str = "gpu_ops.json") -> dict:
    return json.loads((out / name).read_text())


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """One dry run of all op benches, and where it wrote."""
    out = tmp_path_factory.mktemp("ops")
    return dry("ops", out), out


def test_all_op_benches_run_and_leave_json_markdown_and_logs(ops):
    done, out = ops
    assert done.returncode == 0, done.stdout + done.stderr
    found = record(out)
    assert {row["op"] for row in found["rows"]} == set(gpu.OPS)
    assert not any(row["red"] or "call" not in row["ways"]["vtfast"] for row in found["rows"])
    assert not any(found["left"].values())
    assert "geometric mean" in (out / "gpu_ops.md").read_text()
    assert len(list((out / "logs").iterdir())) == len(gpu.OPS)


def test_every_op_has_an_eager_and_a_fair_baseline_and_two_compiled_cases_or_more(ops):
    _, out = ops
    for op in gpu.OPS:
        rows = [row for row in record(out)["rows"] if row["op"] == op]
        roles = [{way["role"] for way in row["ways"].values()} for row in rows]
        assert all({"eager", "fair", "vtfast"} <= some for some in roles), op
        assert sum("compiled" in some for some in roles) >= 2, op


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A command with its steps replaced by scripts of one line each: exit code, what it printed."""

    def run(what, *options, **scripts):
        def steps(*_):
            lines = {name: [sys.executable, "-c", line] for name, line in scripts.items()}
            return [gpu.Step(name, line, 2.0) for name, line in lines.items()]

        monkeypatch.setattr(gpu, "check_steps" if what == "check" else "bench_steps", steps)
        monkeypatch.setattr(
            sys, "argv", ["gpu.py", what, "--dry", "--out", str(tmp_path), *options]
        )
        return gpu.main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize("red", [{}, {"vtfast": "differs"}], ids=["green", "red"])
def test_benches_continue_with_what_was_carried_over(ops, command, tmp_path, red):
    """What was red in the earlier run stays red."""
    _, out = ops
    found = record(out)
    found["rows"][0]["red"] = red
    earlier = tmp_path / "before.json"
    earlier.write_text(json.dumps(found))
    code, said = command("ops", "--resume", str(earlier))
    assert code == bool(red)
    assert record(tmp_path) == found
    assert ("RED: vtfast" in said) == bool(red)


def test_measured_cases_are_not_measured_again_by_the_next_run(ops, tmp_path):
    """The script itself leaves them out, also in another folder."""
    _, out = ops
    done = dry("ops", tmp_path, "--resume", str(out / "gpu_ops.json"), "--only", "topk")
    assert done.returncode == 0, done.stderr
    assert record(tmp_path)["rows"] == record(out)["rows"]
    assert len(record(tmp_path)["runs"]) == len(record(out)["runs"]) + 1


def test_benches_stop_at_their_limit_and_say_what_is_left(command):
    assert command("ops", "--seconds", "0", topk="1 / 0") == (0, "left for the next run: topk\n")


@pytest.mark.parametrize("what", ["ops", "model"])
@pytest.mark.parametrize("end", ["raise SystemExit(3)", "1 / 0"])
def test_a_bench_that_breaks_is_red(command, what, end):
    code, said = command(what, topk=end)
    assert code == 1
    assert "BROKEN: topk" in said


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    return dry("check", out), out


def test_all_checks_run_and_leave_json_markdown_and_logs(checks):
    done, out = checks
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {n: step["status"] for n, step in record(out, "gpu_check.json")["steps"].items()}
    assert verdicts.pop("memcheck") == verdicts.pop("racecheck") == "not run"
    assert set(verdicts.values()) == {"passed"}, verdicts
    assert "test_device, not hypothesis | passed |" in (out / "gpu_check.md").read_text()
    assert len(list((out / "logs").iterdir())) == len(verdicts)


def test_checks_that_passed_are_not_repeated(checks, tmp_path):
    _, out = checks
    done = dry("check", tmp_path, "--resume", str(out / "gpu_check.json"))
    assert done.returncode == 0, done.stderr
    assert ": passed" not in done.stderr
    assert record(tmp_path, "gpu_check.json") == record(out, "gpu_check.json")


STEPS = {
    "green": "print('ok this')",
    "red": "print('that differs'); raise SystemExit(1)",
    "slow": "import time; print('ok', flush=True); time.sleep(60)",
    "red, then slow": "import time; print('x FAILED [ 1%]', flush=True); time.sleep(60)",
    "absent": None,
}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Run `gpu.py check` with steps of a line of Python each: exit code and verdicts."""

    def run(*names, seconds="100"):
        chosen = [
            gpu.Step(n, [sys.executable, "-c", STEPS[n] or ""], 2.0, "" if STEPS[n] else "no")
            for n in names
        ]
        monkeypatch.setattr(gpu, "check_steps", lambda *_: chosen)
        options = ["--dry", "--out", str(tmp_path), "--seconds", seconds]
        monkeypatch.setattr(sys, "argv", ["gpu.py", "check", *options])
        code = gpu.main()
        steps = record(tmp_path, "gpu_check.json")["steps"]
        return code, {name: step["status"] for name, step in steps.items()}

    return run


def test_a_failed_step_is_red_and_the_others_go_on(check):
    assert check("red", "green") == (1, {"red": "failed", "green": "passed"})


def test_a_step_out_of_time_is_neither_red_nor_passed(check):
    assert check("slow") == (0, {"slow": "out of time"})


def test_a_step_with_a_failed_test_is_red_even_out_of_time(check):
    assert check("red, then slow") == (1, {"red, then slow": "failed"})


def test_what_is_not_installed_is_named_and_not_red(check):
    assert check("absent") == (0, {"absent": "not run"})


def test_without_pytest_its_steps_are_not_run_and_the_others_are(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    steps = {step.name: step.missing for step in gpu.check_steps("cuda", tmp_path, False)}
    tests = {name for name in steps if name.startswith("tests: ")}
    assert {steps[name] for name in tests} == {"pytest and hypothesis not installed"}
    others = {name: why for name, why in steps.items() if name not in tests and why}
    assert set(others) <= {"memcheck", "racecheck"}


def test_every_op_has_its_native_tests_its_cases_and_a_small_call():
    assert all((ROOT / "tests" / f"{name}.py").exists() for name in gpu.TESTS)
    scripts = {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    others = {"host", "information", "launch", "model", "overhead"}  # not of ops on a device
    assert set(gpu.OPS.values()) == scripts - others
    for script in set(gpu.OPS.values()):
        ops = {op for op, where in gpu.OPS.items() if where == script}
        assert set(import_module(f"bench_{script}").OPS) == ops
    ops = {name.partition(",")[0] for name in op_calls("cpu")}
    assert ops == set(vtfast.ops.__all__) - {"Ragged"}


def test_no_check_begins_when_the_time_is_up(check):
    assert check("green", seconds="0.5") == (0, {"green": "not begun"})


def test_a_step_that_was_not_passed_is_tried_again(check):
    assert check("green", seconds="0.5")[1] == {"green": "not begun"}
    assert check("green")[1] == {"green": "passed"}


def test_a_step_ends_with_its_children_at_its_limit(tmp_path):
    child = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {!r}])"
    inner = f"import time, pathlib\ntime.sleep(3)\npathlib.Path({str(tmp_path)!r}, 'lived').touch()"
    runner = gpu.Runner(tmp_path, 100)
    step = runner.run(gpu.Step("x", [sys.executable, "-c", child.format(inner)], 1.0))
    assert (step["status"], step["code"]) == ("out of time", None)
    assert 0.9 < step["seconds"] < 2.5
    subprocess.run([sys.executable, "-c", "import time; time.sleep(3)"])
    assert not (tmp_path / "lived").exists()
