"""Is everything right on this GPU? One command that ends within its time, on stock packages.

    make gpu-check PYTHON=python3 OUT=bench/out        # needs torch, triton, transformers
    make gpu-check PYTHON=python3 OUT=… RESUME=FILE    # goes on with the steps of an earlier run

Steps in a fixed order of value, each a process with a limit and a log: the device checks (random
picks bit-equal to those of a CPU, no waits, graphs, toy models), the native tests of every op, the
parity gates of all benches, compute-sanitizer over a short list of calls. Tests that draw their
examples come last, because on a GPU every new shape compiles a kernel. What is not installed is
named and skipped. Steps that passed on the same sources and device are not repeated. `gpu_check.json`
and `gpu_check.md` hold the verdicts; the exit code is 1 if one is red. A step that ran out of time
is not red, and not passed.
"""  # noqa: E501

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import figures
import machine
import torch
from gpu_ops import ORDER
from steps import Clock, Log, run_step

HERE = Path(__file__).resolve().parent
OP_TESTS = (
    "random_select",
    "topk_select",
    "gather",
    "gather_picks",
    "diversity_select",
    "last_query_scores",
    "ragged_attention",
    "ragged_decode",
    "launch",
    "batch_composition",
    "patch_syncs",
    "patch_triton",
    "patch_memory",
)
DRY_TESTS = ("ragged",)  # quick ones, to see that running tests works


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float = 120.0  # seconds
    missing: str = ""  # why it cannot be run here
    env: dict[str, str] = field(default_factory=dict)


def steps(device: str, out: Path, dry: bool) -> list[Step]:
    """Everything to do, the most telling first."""
    python = sys.executable

    def check(name: str, limit: float = 60.0) -> Step:
        command = [python, str(HERE / "device_checks.py"), name, "--device", device]
        return Step(f"check: {name}", command, limit)

    def gate(op: str) -> Step:
        command = [python, str(HERE / f"bench_{op}.py"), "--check", "--device", device]
        command += ["--json", str(out / "gates" / f"{op}.json"), *(["--tiny"] if dry else [])]
        return Step(f"parity: {op}", command, 90.0)

    names = DRY_TESTS if dry else OP_TESTS
    plain = [native(name, "not hypothesis", device, 90.0) for name in names]
    drawn = [] if dry else [native(name, "hypothesis", device, 150.0) for name in names]
    return [
        *(check(name) for name in ("fixtures", "reads", "graphs", "decoding")),
        *plain,
        check("models", 120.0),
        *(gate(op) for op in (ORDER[:1] if dry else ORDER)),  # dry: gpu_ops.py goes through all
        *(sanitizer(tool, device) for tool in ("memcheck", "racecheck")),
        *drawn,
    ]


def native(name: str, kind: str, device: str, limit: float) -> Step:
    """The tests of one file, those that draw examples or those that do not."""
    missing = [package for package in ("pytest", "hypothesis") if find_spec(package) is None]
    file = f"tests/kernels/test_{name}.py"
    command = [sys.executable, "-m", "pytest", file, "-v", "-p", "no:cacheprovider", "-m", kind]
    why = f"{' and '.join(missing)} not installed" if missing else ""
    return Step(f"tests: {name}, {kind}", command, limit, why, {"VTFAST_TEST_DEVICE": device})


def sanitizer(tool: str, device: str) -> Step:
    """compute-sanitizer over every op once; without PyTorch's own memory pool, which hides much."""
    program = shutil.which("compute-sanitizer")
    missing = "" if program else "compute-sanitizer is not installed"
    missing = missing if device == "cuda" else "needs a GPU"
    command = [program or "", "--tool", tool, "--error-exitcode", "9", sys.executable]
    command += [str(HERE / "device_checks.py"), "calls", "--device", device]
    return Step(f"{tool}", command, 150.0, missing, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="a gpu_check.json to go on with"
    )
    parser.add_argument("--seconds", type=float, default=520, help="all must end within (520)")
    parser.add_argument("--only", default="", metavar="TEXT", help="steps with this in their name")
    parser.add_argument("--dry", action="store_true", help="a few quick steps on the CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock, log = Clock(options.seconds), Log(options.out)
    if not (options.dry or torch.cuda.is_available()):
        parser.error("PyTorch sees no GPU here; --dry runs on the CPU")
    device = "cpu" if options.dry else "cuda"

    target = options.out / "gpu_check.json"
    facts = machine.header(device)
    record = _earlier(options.resume or target, facts)
    for step in steps(device, options.out, options.dry):
        if (
            options.only in step.name
            and record["steps"].get(step.name, {}).get("status") != "passed"
        ):
            record["steps"][step.name] = _run(step, clock, log)
            target.write_text(json.dumps(record, indent=1) + "\n")
    table = [["step", "verdict", "seconds", "said"]]
    for name, step in record["steps"].items():
        table.append([name, step["status"], f"{step['seconds']:.0f}", step["said"]])
    (options.out / "gpu_check.md").write_text(_document(record, table))
    print(figures.aligned(table))
    return int(any(step["status"] == "failed" for step in record["steps"].values()))


def _earlier(path: Path, facts: dict) -> dict:
    """The record so far, if it is of these sources and this device."""
    if path.exists():
        record = json.loads(path.read_text())
        if all(record["facts"][key] == facts[key] for key in ("device", "sources")):
            return record
        print(f"{path} is of another device or other sources; begun anew", file=sys.stderr)
    return {"facts": facts, "steps": {}}


def _run(step: Step, clock: Clock, log: Log) -> dict:
    """The verdict on a step. A test that failed before the time was up is red all the same."""
    if step.missing:
        return {"status": "not run", "seconds": 0.0, "said": step.missing}
    if clock.left() < 5:
        return {"status": "not begun", "seconds": 0.0, "said": "the time was up"}
    done = run_step(step.name, step.command, min(step.limit, clock.left()), log, step.env)
    said = log.path(step.name).read_text(errors="replace")
    if done["status"] == "out of time" and (" FAILED" in said or "\nRED " in said):
        done["status"] = "failed"
    if step.name.startswith("tests: ") and done["code"] == 5:  # none of this kind in the file
        done["status"] = "passed"
    return done


def _document(record: dict, table: list[list[str]]) -> str:
    facts = record["facts"]
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    cells = [[cell.replace("|", "/") for cell in row] for row in table]
    return "\n".join([*lines, "", figures.markdown(cells), ""])


if __name__ == "__main__":
    sys.exit(main())
