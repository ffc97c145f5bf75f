"""Check and time vtfast on a GPU in three commands, each within a time limit, on stock packages.

    make gpu-check PYTHON=python3 OUT=bench/out        # check all results
    make gpu-ops   PYTHON=python3 OUT=bench/out        # time every op
    make gpu-model PYTHON=python3 OUT=… RESUME=FILE    # time whole models; continues a run

Steps run in a fixed order, the most telling first, each in a process with a time limit and a log;
steps of `check` that passed on the same sources and device are not repeated. Each command writes
`gpu_<name>.json`, which a later run continues, and `gpu_<name>.md`. The exit code is 1 if a result
is wrong or a step breaks. A step that runs out of time counts neither as failed nor as passed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import machine
import report
import torch

HERE = Path(__file__).resolve().parent
# The ops, the most telling first, and the scripts that have their cases.
OPS = {"diversity": "diversity", "attention": "attention", "gather": "selection",
       "random": "selection", "topk": "selection", "decode": "attention", "scores": "scores",
       "hash": "hash", "dpp": "diversity", "coverage": "diversity"}  # fmt: skip
_KERNELS = (
    *("device", "random_select", "topk_select", "gather", "compact"),
    *("diversity_select", "diversity_weights", "image_hash", "last_query_scores"),
    *("ragged_attention", "ragged_attention_kernel", "repeat", "unchecked"),
    *("dpp_select", "coverage_select", "gain_select"),
    *("ragged_decode", "ragged_decode_kernel", "launch", "batch_composition"),
)
TESTS = [*(f"kernels/test_{name}" for name in _KERNELS),
         *(f"runtime/test_patch_{name}" for name in ("syncs", "triton", "memory"))]  # fmt: skip
DRY_TESTS = ["kernels/test_device"]
DRY_MODELS = ["divprune+random 0.5, b8", "divprune+random 0.5, b1, 1024", "0.25, break-even",
              "fastv 0.5"]  # fmt: skip


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    limit: float = 120.0  # seconds
    missing: str = ""  # why it cannot be run here
    env: dict[str, str] = field(default_factory=dict)


class Runner:
    """Runs steps until the time is up, and writes a log of each."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.end, self.logs = time.monotonic() + seconds, out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, step: Step) -> dict:
        """Status, exit code, seconds, last line; at its limit it is killed with its children."""
        if step.missing or self.left() < 1:
            status = "not run" if step.missing else "not begun"
            return {"status": status, "seconds": 0.0, "said": step.missing or "the time was up"}
        began, log = time.monotonic(), self.logs / f"{re.sub(r'[^a-z0-9]+', '_', step.name)}.log"
        path = os.pathsep.join(filter(None, [str(machine.ROOT), os.environ.get("PYTHONPATH")]))
        how = {"cwd": machine.ROOT, "env": {**os.environ, **step.env, "PYTHONPATH": path}}
        print(f"{step.name}: ", end="", file=sys.stderr, flush=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                step.command, stdout=output, stderr=output, start_new_session=True, **how
            )
            try:
                code = process.wait(min(step.limit, self.left()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait() and None
        said = log.read_text(errors="replace")
        status = {0: "passed", None: "out of time"}.get(code, "failed")
        if code is None and " FAILED" in said:  # a test failed before the time was up
            status = "failed"
        if step.name.startswith("tests: ") and code == 5:  # none of this kind in the file
            status = "passed"
        seconds = round(time.monotonic() - began, 1)
        print(f"{status}, {seconds} s", file=sys.stderr, flush=True)
        last = (said.strip().splitlines() or [""])[-1][:300]
        return {"status": status, "code": code, "seconds": seconds, "said": last}


def check_steps(device: str, out: Path, dry: bool) -> list[Step]:
    """The tests of the device and of every op, the parity of all benches, compute-sanitizer, and
    last the tests that draw examples, because every new shape compiles a kernel."""
    absent = [package for package in ("pytest", "hypothesis") if find_spec(package) is None]
    missing = f"{' and '.join(absent)} not installed" if absent else ""

    def tests(file: str, kind: str, limit: float) -> Step:
        command = [sys.executable, "-m", "pytest", f"tests/{file}.py", "-v", "-m", kind]
        env = {"VTFAST_TEST_DEVICE": device, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        return Step(f"tests: {file}, {kind}", command, limit, missing, env)

    def parity(op: str) -> Step:
        command = [sys.executable, str(HERE / f"bench_{OPS[op]}.py"), "--op", op, "--check"]
        command += ["--device", device, "--json", str(out / "gates" / f"{op}.json")]
        return Step(f"parity: {op}", [*command, *["--tiny"] * dry], 90.0)

    def sanitizer(tool: str) -> Step:
        """Calls every op once, without PyTorch's memory pool, which hides many errors."""
        program = shutil.which("compute-sanitizer")
        command = [program or "", "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += [str(machine.ROOT / "tests" / "helpers" / "op_calls.py"), device]
        why = "" if program else "compute-sanitizer is not installed"
        why = why if device == "cuda" else "needs a GPU"
        return Step(tool, command, 150.0, why, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    files = DRY_TESTS if dry else TESTS
    return [
        *(tests(file, "not hypothesis", 120.0) for file in files),
        *map(parity, list(OPS)[: 1 if dry else None]),  # a dry run of `ops` has the others
        *map(sanitizer, ("memcheck", "racecheck")),
        *(tests(file, "hypothesis", 150.0) for file in files if not dry),
    ]


def check(options: argparse.Namespace, runner: Runner) -> int:
    device, target = "cpu" if options.dry else "cuda", options.out / "gpu_check.json"
    if not (options.dry or torch.cuda.is_available()):
        raise SystemExit("PyTorch sees no GPU here; --dry runs on the CPU")
    record, earlier = {"facts": machine.header(device), "steps": {}}, options.resume or target
    before = json.loads(earlier.read_text()) if earlier.exists() else record
    if machine.same(before["facts"], record["facts"]):
        record = before
    else:
        print(f"{earlier} is of another device or other sources; begun anew", file=sys.stderr)
    verdicts, table = record["steps"], [["step", "verdict", "seconds", "said"]]
    for step in check_steps(device, options.out, options.dry):
        wanted = any(text in step.name for text in options.only)
        if wanted and verdicts.get(step.name, {}).get("status") != "passed":
            verdicts[step.name] = runner.run(step)
            target.write_text(json.dumps(record, indent=1) + "\n")
    for name, s in verdicts.items():
        table.append([name, s["status"], f"{s['seconds']:.0f}", s["said"].replace("|", "/")])
    facts = [f"{key}: {value}" for key, value in record["facts"].items()]
    page = report.as_markdown([], [("", [], facts), ("", table, [])])
    (options.out / "gpu_check.md").write_text(page + "\n")
    print(report.aligned(table))
    return int(any(step["status"] == "failed" for step in verdicts.values()))


def bench_steps(options: argparse.Namespace, runner: Runner, target: Path) -> list[Step]:
    """All cases of every op, then those with a compiled variant; or the bench of whole models."""

    def bench(name: str, script: str, seconds: float, *arguments: str) -> Step:
        # A case that has begun may finish; at `seconds` the process is killed in any case.
        command = [sys.executable, str(HERE / f"bench_{script}.py"), "--json", str(target)]
        command += [*arguments, "--seconds", str(0.9 * seconds)]
        dry = ["--tiny", "--device", "cpu", "--rounds", "1"] if options.dry else []
        return Step(name, [*command, *dry], seconds)

    if options.what == "model":
        only = DRY_MODELS if options.dry and options.only == [""] else options.only
        return [bench("model", "model", max(0.0, runner.left()), "--only", *only)]
    most = 0.4 * options.seconds  # for one script, so that one that hangs leaves time for others
    chosen = [op for op in OPS if any(text in op for text in options.only)]
    plain = [bench(op, OPS[op], most, "--op", op) for op in chosen]
    more = [bench(f"{op}, compiled", OPS[op], most, "--op", op, "--compiled") for op in chosen]
    return more if options.dry else plain + more


def benches(options: argparse.Namespace, runner: Runner) -> int:
    target = options.out / f"gpu_{options.what}.json"
    if options.resume is not None and options.resume.resolve() != target.resolve():
        target.write_text(options.resume.read_text())
    verdicts = {step.name: runner.run(step) for step in bench_steps(options, runner, target)}
    record = json.loads(target.read_text()) if target.exists() else {"rows": [], "left": {}}
    if record["rows"]:
        page = report.sections(record)
        (options.out / f"gpu_{options.what}.md").write_text(report.as_markdown(*page) + "\n")
        print(report.as_text(*page))
    left = [f"{op}, {case}" for op, cases in record["left"].items() for case in cases]
    left += [name for name, verdict in verdicts.items() if verdict["status"] == "not begun"]
    failed = [name for name, verdict in verdicts.items() if verdict["status"] == "failed"]
    red = {row["op"] for row in record["rows"] if row["red"]}
    lines = [f"left for the next run: {name}" for name in left]
    broken = (name for name in failed if name.partition(",")[0] not in red)
    print("\n".join([*lines, *(f"BROKEN: {name}, see {runner.logs}" for name in broken)]))
    return int(bool(red or failed))


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=("check", "ops", "model"))
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="continue this earlier JSON")
    parser.add_argument("--seconds", type=float, default=520, help="time limit of all (520)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="steps by name")
    parser.add_argument("--dry", action="store_true", help="try it at tiny sizes on the CPU")
    options = parser.parse_args()
    runner = Runner(options.out, options.seconds)
    return (check if options.what == "check" else benches)(options, runner)


if __name__ == "__main__":
    sys.exit(main())
