"""Every op bench in one command that ends within its time, on a machine with stock packages.

    make gpu-ops PYTHON=python3 OUT=bench/out        # needs torch and triton, no installation
    make gpu-ops PYTHON=python3 OUT=… RESUME=FILE    # goes on with the figures of an earlier run

The scripts run one after another in a fixed order of value, each in a process of its own; cases
with a compiled way come in a second round, because compiling takes longest. When the time is up
what there is has been written: `gpu_ops.json`, from which a repetition goes on, `gpu_ops.md`, and a
log for every script. The exit code is 1 if a parity check was red or a script broke.
"""

import argparse
import json
import sys
from pathlib import Path

import figures
from steps import Clock, Log, run_step

HERE = Path(__file__).resolve().parent
ORDER = ("diversity", "attention", "gather", "random", "topk", "fused", "decode", "scores")
LARGEST_SHARE = 0.4  # of the time for one script, so that one that hangs leaves something over


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where everything goes")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with this earlier JSON")
    parser.add_argument("--seconds", type=float, default=520, help="all must end within (520)")
    parser.add_argument("--ops", nargs="+", choices=ORDER, default=ORDER, metavar="OP")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: does it run?")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "gpu_ops.json"
    if options.resume is not None and options.resume.resolve() != target.resolve():
        target.write_text(options.resume.read_text())

    clock, log = Clock(options.seconds), Log(options.out)
    failed, skipped = [], []
    for compiled in ("too",) if options.dry else ("no", "only"):
        for op in options.ops:
            if clock.left() < 1:
                skipped.append(f"{op}, compiled: {compiled}")
                continue
            seconds = min(clock.left(), LARGEST_SHARE * options.seconds)
            command = [sys.executable, str(HERE / f"bench_{op}.py"), "--json", str(target)]
            command += ["--compiled", compiled]
            # A case that has begun is waited for; the process ends with the time in any case.
            command += ["--seconds", str(0.9 * seconds)]
            command += ["--tiny", "--device", "cpu", "--rounds", "2"] if options.dry else []
            step = run_step(f"{op}, compiled: {compiled}", command, seconds, log)
            if step["status"] == "failed":
                failed.append(op)
    return _report(target, options.out, failed, skipped)


def _report(target: Path, out: Path, failed: list[str], skipped: list[str]) -> int:
    """Tables for the terminal and in Markdown, and the exit code."""
    record = json.loads(target.read_text()) if target.exists() else {"rows": [], "left": {}}
    if record["rows"]:
        (out / "gpu_ops.md").write_text(figures.document(record) + "\n")
        print(figures.summary(record["rows"], record["runs"]))
    for op, cases in record["left"].items():
        for case in cases:
            print(f"left for the next run: {op}, {case}")
    for script in skipped:
        print(f"left for the next run: {script}")
    red = {row["op"] for row in record["rows"] if row["red"]}
    for op in failed:
        if op not in red:
            print(f"BROKEN: bench_{op}.py, see {out / 'logs'}")
    return int(bool(red or failed))


if __name__ == "__main__":
    sys.exit(main())
