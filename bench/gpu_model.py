"""The whole-model bench in one command that ends within its time, on stock packages.

    make gpu-model PYTHON=python3 OUT=bench/out        # needs torch, triton, transformers
    make gpu-model PYTHON=python3 OUT=… RESUME=FILE    # goes on with an earlier run's figures

`bench_model.py` does the work, in a process of its own that is ended with the time in any case;
what it has measured by then is in `gpu_model.json`. If time is left, the case that is farthest
beyond its native run, if by more than 5 %, is profiled into a log. `gpu_model.md` has the tables.
The exit code is 1 if an answer was wrong or the script broke.
"""

import argparse
import json
import sys
from pathlib import Path

import model_figures
from prefills import PACKED
from steps import Clock, Log, run_step

HERE = Path(__file__).resolve().parent
PROFILE = 60.0  # seconds that a profile needs, building the model included
DRY = ("divprune+random 0.5, b8", "divprune+random 0.5, b1, 1024", "0.25, break-even", "fastv 0.5")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with this earlier JSON")
    parser.add_argument("--seconds", type=float, default=520, help="all must end within (520)")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="only such cases")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: does it run?")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "gpu_model.json"
    if options.resume is not None and options.resume.resolve() != target.resolve():
        target.write_text(options.resume.read_text())

    clock, log = Clock(options.seconds), Log(options.out)
    script = [sys.executable, str(HERE / "bench_model.py")]
    script += ["--tiny", "--device", "cpu", "--rounds", "1"] if options.dry else []
    chosen = DRY if options.dry and options.only == [""] else options.only
    # A case that has begun is waited for; the process ends with the time in any case.
    command = [*script, "--json", str(target), "--seconds", str(0.9 * clock.left())]
    step = run_step("model", [*command, "--only", *chosen], max(0.0, clock.left()), log)
    record = json.loads(target.read_text()) if target.exists() else {"rows": [], "left": {}}
    worst = slowest(record["rows"])
    if worst and clock.left() > PROFILE:
        run_step("profile", [*script, "--profile", "--only", worst], PROFILE, log)
    return _report(record, options.out, step["status"] == "failed")


def slowest(rows: list[dict]) -> str:
    """The case in which packed is farthest beyond native, if by more than it should be."""
    beyond = {
        row["case"]: model_figures.median(row, PACKED, "of_native")
        for row in model_figures.prefills(rows)
        if model_figures.measured(row)
    }
    worst = max(beyond, key=beyond.__getitem__, default="")
    return worst if worst and beyond[worst] > model_figures.MOST else ""


def _report(record: dict, out: Path, broken: bool) -> int:
    """Tables for the terminal and in Markdown, and the exit code."""
    if record["rows"]:
        (out / "gpu_model.md").write_text(model_figures.document(record) + "\n")
        print(model_figures.summary(record["rows"], record["runs"]))
    for cases in record["left"].values():
        for case in cases:
            print(f"left for the next run: {case}")
    red = any(row["red"] for row in record["rows"])
    if broken and not red:
        print(f"BROKEN: bench_model.py, see {out / 'logs'}")
    return int(red or broken)


if __name__ == "__main__":
    sys.exit(main())
