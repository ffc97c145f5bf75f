"""Check and then time the cases of an op; print a table on stderr and JSON on stdout.

The answer of every variant of a case must pass the case's gate before anything is timed; if one
does not, the case shows the mismatch and no time, and the exit code is 1. Figures that are already
in `--json FILE`, from the same sources on the same device, are not measured again.
"""

import argparse
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path

import machine
import report
import torch
from machine import call_samples, graph_samples, sets_needed, summary
from parity import Check

START = time.monotonic()
SLOWEST_IN_A_GRAPH = 20  # ms of a plain call; a slower one makes graphs of thousands of launches
_backend = "inductor"


@dataclass(frozen=True)
class Variant:
    """One implementation of what the case asks: a function of the case's inputs.

    role: "vtfast"; "eager", the plain baseline; "fair", another baseline; "compiled", one that is
        timed with `--compiled` only; "note", shown for information, neither checked nor compared.
    gate: its own check of the answer, if that may legitimately differ from the others'.
    missing: why there is no call, for example "not installed".
    """

    name: str
    call: Callable[..., object] | None
    role: str
    gate: Callable[[tuple], Check] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Case:
    """One workload for one op.

    make: number → inputs on the device for a variant; small ones are others in every plain call.
    gate: inputs → the check that an answer to them must pass.
    nbytes, flops: the fewest that the case needs, for the ceilings.
    """

    name: str
    shape: str
    dtype: torch.dtype
    make: Callable[[int], tuple]
    variants: Sequence[Variant]
    gate: Callable[[tuple], Check]
    nbytes: int
    flops: int = 0


def installed(module: str, name: str) -> tuple[Callable[..., object] | None, str]:
    """A function of an optional package, or None and the reason."""
    try:
        return getattr(importlib.import_module(module), name), ""
    except ImportError:
        return None, "not installed"
    except AttributeError:
        return None, f"this version of {module} has no {name}"


def compiled(function: Callable) -> Callable:
    """`torch.compile` at the first call; tiny runs trace without generating code."""
    ready = cache(lambda: torch.compile(function, backend=_backend))
    return lambda *inputs, **named: ready()(*inputs, **named)


class Record:
    """All figures so far, in a file that is valid JSON after every case."""

    def __init__(self, path: Path | None, facts: dict, ceilings: dict):
        self.path, self.runs, self.left = path, [], {}
        self.rows: dict[tuple[str, str], dict] = {}  # by op and name of the case
        if path is not None and path.exists():
            before = json.loads(path.read_text())
            if all(machine.same(run, facts) for run in before["runs"]):
                self.runs, self.left = before["runs"], before["left"]
                self.rows = {(row["op"], row["case"]): row for row in before["rows"]}
            else:
                print(f"{path} is of another device or other sources; begun anew", file=sys.stderr)
        self.runs.append({**facts, "ceilings": ceilings})

    def as_json(self) -> dict:
        return {"runs": self.runs, "left": self.left, "rows": list(self.rows.values())}

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        fresh.replace(self.path)

    def measure(
        self,
        op: str,
        cases: Iterable,
        seconds: float,
        measure: Callable,
        done: Callable = lambda *_: True,
    ) -> None:
        """Measure the cases that are not done, while the next one is expected to end in time."""
        left, longest = [], 0.0
        for case in cases:
            if (row := self.rows.get((op, case.name))) and done(row, case):
                continue
            begin = time.monotonic()
            if left or begin - START + longest > seconds:
                left.append(case.name)
                continue
            row = self.rows[op, case.name] = measure(case, len(self.runs) - 1)
            self.save()
            longest = max(longest, time.monotonic() - begin)
            print(f"{op}: {report.verdict(row)}", file=sys.stderr, flush=True)
        self.left[op] = left
        self.save()
        if left:
            print(f"{op}: stopped at its limit, left: {left}", file=sys.stderr)

    def end(self, *ops: str) -> int:
        """Show the figures of these ops; returns the exit code: 1 if a case of them is red."""
        rows = [row for row in self.rows.values() if row["op"] in ops]
        if rows:
            shown = report.sections({**self.as_json(), "rows": rows})
            print(report.as_text(*shown), file=sys.stderr)
        if self.path is None:
            print(json.dumps(self.as_json(), indent=1))
        return int(any(row.get("red") for row in rows))


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that all benches have."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add to this file, not stdout")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after this time")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds ({rounds})")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    only = {"nargs": "+", "default": [""], "metavar": "TEXT"}
    parser.add_argument("--only", **only, help="cases with one of these in their name")
    return parser


def main(ops: dict[str, Callable[[str, bool], Iterable[Case]]], description: str) -> None:
    """The command line of a bench script with the cases of one op or several; ends the process."""
    global _backend
    arguments = parser(description, rounds=9)
    arguments.add_argument("--op", choices=ops, help="this one alone (default: all)")
    arguments.add_argument("--compiled", action="store_true", help="with compiled variants too")
    arguments.add_argument("--check", action="store_true", help="check parity, time nothing")
    options = arguments.parse_args()
    torch.set_num_threads(1)  # times on a CPU are of one thread
    _backend = "eager" if options.tiny else "inductor"
    ceilings = {} if options.check else machine.ceilings(options.device, options.tiny)
    record = Record(options.json, machine.header(options.device), ceilings)
    chosen = [options.op] if options.op else list(ops)

    def done(row: dict, case: Case) -> bool:
        """With a new compiled variant the whole case is timed again, so that all ran together."""
        wanted = (v for v in case.variants if v.role == "compiled" and options.compiled)
        return all(variant.name in row["ways"] for variant in wanted)

    for op in chosen:
        with torch.no_grad():
            cases = ops[op](options.device, options.tiny)
            cases = (case for case in cases if any(text in case.name for text in options.only))
            record.measure(op, cases, options.seconds, partial(_measure, op, options), done)
    sys.exit(record.end(*chosen))


def _measure(op: str, options: argparse.Namespace, case: Case, run: int) -> dict:
    """The row of a case: which answers are right, and if all are, the times."""
    row = {"op": op, "case": case.name, "shape": case.shape,
           "dtype": str(case.dtype).removeprefix("torch."), "nbytes": case.nbytes,
           "flops": case.flops, "run": run, "red": {}, "ways": {}}  # fmt: skip
    inputs = case.make(0)
    gate = case.gate(inputs)
    torch.compiler.reset()
    variants = [v for v in case.variants if v.role != "compiled" or options.compiled]
    calls = {v.name: v.call for v in variants if _answers(v, gate, inputs, row)}
    if row["red"] or options.check:
        return row
    size = sum(x.nbytes for x in inputs if isinstance(x, torch.Tensor))
    turn = cycle([inputs, *map(case.make, range(1, machine.MAX_SETS if size < 2**17 else 1))])
    ready = {name: lambda call=call: call(*next(turn)) for name, call in calls.items()}
    seconds = 1e-4 if options.tiny else 0.02
    _note(row, "call", call_samples(ready, options.device, options.rounds, seconds))
    if options.device == "cuda":
        for name, call in ready.items():
            row["ways"][name]["host_reads"] = host_reads(call)
        _measure_graphs(case, inputs, calls, row)
    return row


def _answers(variant: Variant, gate: Check, inputs: tuple, row: dict) -> bool:
    """Whether the variant can be timed; the row gets its role and what is missing or wrong."""
    entry = row["ways"][variant.name] = {"role": variant.role}
    if variant.call is None:
        entry["missing"] = variant.missing
        return False
    try:
        answer = variant.call(*inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:100].splitlines()[0]}"
        if variant.role == "vtfast":
            row["red"][variant.name] = reason
        else:  # a baseline that cannot run this case is not compared, and the table says so
            entry["missing"] = reason
        return False
    check = variant.gate(inputs) if variant.gate else gate
    if wrong := "" if variant.role == "note" else check(answer):
        row["red"][variant.name] = wrong
    return not wrong


def host_reads(call: Callable[[], object], device: str = "cuda") -> int:
    """How often the host reads the device back in one call; on a CPU, how often it would."""
    if device == "cpu":
        from host_reads import HostReads

        with HostReads() as found:
            call()
        return found.count
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _measure_graphs(case: Case, inputs: tuple, calls: dict, row: dict) -> None:
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    touched = min(case.nbytes, sum(x.nbytes for x in inputs if isinstance(x, torch.Tensor)))
    sets = [inputs, *(case.make(i) for i in range(1, sets_needed(touched, l2)))]
    covered = len(sets) * touched >= 3 * l2
    scratch = None if covered else torch.ones(3 * l2 // 4, device="cuda")
    refused = {}  # not captured: a failed capture leaves the random generator unusable
    for name in calls:
        if row["ways"][name]["host_reads"]:
            refused[name] = "it waits for the device"
        elif row["ways"][name]["call"]["median"] > SLOWEST_IN_A_GRAPH:
            refused[name] = f"a call takes over {SLOWEST_IN_A_GRAPH} ms"
    able = {name: call for name, call in calls.items() if name not in refused}
    warm, cold, failed = graph_samples(able, sets, scratch)
    _note(row, "warm", warm)
    _note(row, "cold", cold)
    row["sets"] = len(sets)
    for name, reason in {**refused, **failed}.items():
        row["ways"][name]["not_captured"] = reason


def _note(row: dict, metric: str, samples: dict[str, list[float]]) -> None:
    for name, milliseconds in samples.items():
        row["ways"][name][metric] = summary(milliseconds)
