"""Show what `vtfast.cli._checkup` finds: tables, or one JSON object; and what to do about it."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from vtfast.cli._checkup import BROKEN, MISSING, STEPS, WARNING, Findings, check_up
from vtfast.cli._terminal import consoles, table, working

_STYLES = {BROKEN: "bold red", WARNING: "yellow", MISSING: "yellow"}


def run(as_json: bool) -> int:
    """The whole command; returns its exit code: 0, or 1 where something is broken."""
    out, err = consoles()
    with working(err, "looking around", STEPS) as tick:
        findings = check_up(tick)
    if as_json:
        print(json.dumps({**asdict(findings), "usable": findings.usable}, indent=2))
    else:
        _show(out, findings)
    return 0 if findings.usable else 1


def _show(out: Console, findings: Findings) -> None:
    out.print(findings.system, style="bold", soft_wrap=True)
    shown = table("package", "found", "supported", "status", "for", wraps=[4])
    for p in findings.packages:
        shown.add_row(p.name, p.found or "-", p.supported or "any", _status(p.status), p.purpose)
    out.print(shown)
    for device in findings.devices:
        out.print(_device(device), soft_wrap=True)
    if findings.runtime:
        out.print(findings.runtime)
    if findings.ops:
        shown = table("op", "auto takes", "status", "why", wraps=[3])
        for op in findings.ops:
            shown.add_row(op.name, op.implementation, _status(op.status), op.reason)
        out.print(shown)
    for check in findings.checks:
        line = Text(f"{check.name}: ").append_text(_status(check.status))
        out.print(line.append(f", {check.result}"))
    if findings.advice:
        out.print("\nWhat to do:", style="bold")
        for number, advice in enumerate(findings.advice, 1):
            out.print(f"{number}. {advice}")
    if findings.usable:
        out.print("\nvtfast can be used here.", style="bold green")
    else:
        out.print("\nvtfast cannot be used like this.", style="bold red")


def _device(device: dict[str, Any]) -> str:
    if "cores" in device:
        return f"{device['name']}: {device['cores']} cores, torch uses {device['threads']}"
    free, total = (f"{device[key] / 2**30:.0f}" for key in ("free_bytes", "memory_bytes"))
    return (
        f"{device['name']}: {device['model']}, compute capability {device['capability']}, "
        f"{free} of {total} GiB free"
    )


def _status(status: str) -> Text:
    return Text(status, style=_STYLES.get(status, "green"))
