"""Run one op's cases: parity first, then times, into a table on stderr and JSON on stdout.

A bench script lists its cases and calls `main`. Every way of a case must answer what the case's
gate asks before anything is timed; where one does not, the case shows the mismatch and no time, and
the exit code is 1. A way that is not installed keeps its place in the table. With `--json FILE` the
figures are added to that file case by case, and what it holds already, from the same sources on the
same device, is not measured again; so a run that stops at `--seconds` is gone on with by repeating
the command.
"""

import argparse
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import figures
import machine
import torch
from parity import Check
from timing import call_samples, graph_samples, sets_needed, summary

START = time.monotonic()
SLOWEST_IN_A_GRAPH = 20  # ms of a plain call: beyond, thousands of launches, and seconds to capture
_BACKENDS = {True: "eager", False: "inductor"}


@dataclass(frozen=True)
class Way:
    """One way to do what the case asks, a function of the case's inputs.

    role: "vtfast"; "eager", the plain baseline; "fair", another one that counts as competition;
        "note", something else worth knowing, neither checked nor compared; "compiled": timed with
        `--compiled` only, and its `call` takes a compiler and returns the function of the inputs.
    gate: its own check of the answer, where it legitimately differs from the others'.
    missing: why there is no call, say "not installed".
    """

    name: str
    call: Callable[..., object] | None
    role: str
    gate: Callable[[tuple], Check] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Case:
    """One workload for one op.

    make: inputs number i, on the device; a way is called with them.
    gate: inputs → the check that an answer to them must pass.
    nbytes, flops: the least that must be moved and computed, for the position on the roofline.
    """

    name: str
    shape: str
    dtype: torch.dtype
    make: Callable[[int], tuple]
    ways: Sequence[Way]
    gate: Callable[[tuple], Check]
    nbytes: int
    flops: int = 0

    def compiled(self) -> list[Way]:
        return [way for way in self.ways if way.role == "compiled"]


def installed(module: str, name: str) -> tuple[Callable[..., object] | None, str]:
    """A function of a package that need not be there, or None and why."""
    try:
        return getattr(importlib.import_module(module), name), ""
    except ImportError:
        return None, "not installed"
    except AttributeError:
        return None, f"this version of {module} has no {name}"


def main(op: str, cases: Callable[[str, bool], Iterable[Case]]) -> None:
    """The command line of a bench script; ends the process."""
    options = _options(op)
    torch.set_num_threads(1)  # what a CPU's times are of
    record = Record(options.json, machine.header(options.device))
    record.begin({} if options.check else machine.ceilings(options.device, options.tiny))
    with torch.no_grad():
        finished = run(op, cases(options.device, options.tiny), options, record)
    rows = [row for row in record.rows if row["op"] == op]
    red = sum(bool(row["red"]) for row in rows)
    if options.check:
        print(f"{op}: parity of {len(rows)} cases, {red} of them red", file=sys.stderr)
    elif rows:
        print(figures.summary(rows, record.runs), file=sys.stderr)
    if not finished:
        print(f"{op}: stopped at its limit, left: {record.left[op]}", file=sys.stderr)
    if options.json is None:
        print(json.dumps(record.as_json(), indent=1))
    sys.exit(int(red > 0))


def _options(op: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Time {op} on one device.")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="add to this file, not stdout")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in the name")
    parser.add_argument(
        "--compiled",
        choices=("no", "too", "only"),
        default="no",
        help="with compiled ways too, or only the cases that have one (default: no)",
    )
    parser.add_argument("--check", action="store_true", help="only whether the answers are right")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return options


class Record:
    """The figures so far, in a file that is whole after every case."""

    def __init__(self, path: Path | None, facts: dict):
        self.path, self.facts = path, facts
        self.runs: list[dict] = []
        self.rows: list[dict] = []
        self.left: dict[str, list[str]] = {}
        if path is None or not path.exists():
            return
        before = json.loads(path.read_text())
        same = ("device", "sources")
        if any(run[key] != facts[key] for run in before["runs"] for key in same):
            print(f"{path} is of another device or other sources; begun anew", file=sys.stderr)
            return
        self.runs, self.rows, self.left = before["runs"], before["rows"], before["left"]

    def begin(self, ceilings: dict) -> None:
        self.runs.append({**self.facts, "ceilings": ceilings})

    def row(self, op: str, case: str) -> dict | None:
        return next((r for r in self.rows if (r["op"], r["case"]) == (op, case)), None)

    def put(self, row: dict) -> None:
        """Add a row, in the place of an older one of the same case."""
        old = self.row(row["op"], row["case"])
        if old is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(old)] = row

    def as_json(self) -> dict:
        return {"runs": self.runs, "left": self.left, "rows": self.rows}

    def save(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".part")
            fresh.write_text(json.dumps(self.as_json(), indent=1) + "\n")
            fresh.replace(self.path)


def run(op: str, cases: Iterable[Case], options: argparse.Namespace, record: Record) -> bool:
    """Measure what the record lacks; false where the time was up before the end."""
    left, longest = [], 0.0
    for case in cases:
        row = record.row(op, case.name)
        if options.only not in case.name or _done(case, row, options.compiled):
            continue
        begin = time.monotonic()
        if left or begin - START + longest > options.seconds:
            left.append(case.name)
            continue
        row = _measure(op, case, len(record.runs) - 1, options)
        record.put(row)
        record.save()
        longest = max(longest, time.monotonic() - begin)
        print(f"{op}: {case.name}: {figures.verdict(row)}", file=sys.stderr, flush=True)
    record.left[op] = left
    record.save()
    return not left


def _done(case: Case, row: dict | None, compiled: str) -> bool:
    """With compiled ways a case is timed once more as a whole, so that all were timed together."""
    ways = [] if compiled == "no" else case.compiled()
    if compiled == "only" and not ways:
        return True
    return row is not None and all(way.name in row["ways"] for way in ways)


def _measure(op: str, case: Case, run: int, options: argparse.Namespace) -> dict:
    """The row of a case: first who answers rightly, then, if all do, how fast."""
    row: dict = {
        "op": op,
        "case": case.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "nbytes": case.nbytes,
        "flops": case.flops,
        "run": run,
        "red": {},
        "ways": {},
    }
    inputs = case.make(0)
    gate = case.gate(inputs)
    ways = [way for way in case.ways if way.role != "compiled"]
    if options.compiled != "no":
        ways += [_compiled(way, options.tiny) for way in case.compiled()]
    able = {way.name: way.call for way in ways if _answers(way, gate, inputs, row)}
    if row["red"] or options.check:
        return row
    calls = {name: partial(call, *inputs) for name, call in able.items()}
    if options.device == "cuda":
        for name, call in calls.items():
            row["ways"][name]["host_reads"] = host_reads(call)
    seconds = 1e-4 if options.tiny else 0.02
    _note(row, "call", call_samples(calls, options.device, options.rounds, seconds))
    if options.device == "cuda":
        _measure_graphs(case, inputs, able, row)
    return row


def _answers(way: Way, gate: Check, inputs: tuple, row: dict) -> bool:
    """Whether the way can be timed; the row says what it is, what is missing, what is wrong."""
    entry = row["ways"][way.name] = {"role": way.role}
    if way.call is None:
        entry["missing"] = way.missing
        return False
    try:
        answer = way.call(*inputs)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip()[:100].splitlines()[0]}"
        if way.role == "vtfast":
            row["red"][way.name] = reason
        else:  # a baseline that cannot do this case is no competitor, and is said to be none
            entry["missing"] = reason
        return False
    if way.role == "note":
        return True
    if wrong := (way.gate(inputs) if way.gate else gate)(answer):
        row["red"][way.name] = wrong
    return not wrong


def host_reads(call: Callable[[], object]) -> int:
    """How often one call waits for the CUDA device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _measure_graphs(case: Case, inputs: tuple, calls: dict, row: dict) -> None:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    held = sum(x.nbytes for x in inputs if isinstance(x, torch.Tensor))
    touched = min(held, case.nbytes)
    sets = [inputs, *(case.make(i) for i in range(1, sets_needed(touched, cache)))]
    covered = len(sets) * touched >= 3 * cache
    scratch = None if covered else torch.ones(3 * cache // 4, device="cuda")
    refused = {name: _graphless(row["ways"][name]) for name in calls}
    able = {name: call for name, call in calls.items() if not refused[name]}
    warm, cold, failed = graph_samples(able, sets, scratch)
    _note(row, "warm", warm)
    _note(row, "cold", cold)
    row["sets"] = len(sets)
    for name, reason in {**refused, **failed}.items():
        if reason:
            row["ways"][name]["not_captured"] = reason


def _graphless(way: dict) -> str:
    """Why no graph is tried. A failed capture would leave the random generator unusable."""
    if way["host_reads"]:
        return "it waits for the device"
    if way["call"]["median"] > SLOWEST_IN_A_GRAPH:
        return f"a call takes over {SLOWEST_IN_A_GRAPH} ms"
    return ""


def _note(row: dict, metric: str, samples: dict[str, list[float]]) -> None:
    for name, milliseconds in samples.items():
        row["ways"][name][metric] = summary(milliseconds)


def _compiled(way: Way, tiny: bool) -> Way:
    """With its call made by `torch.compile`; tiny runs trace without generating code."""
    torch.compiler.reset()
    if way.call is None:
        return way
    return replace(way, call=way.call(partial(torch.compile, backend=_BACKENDS[tiny])))
