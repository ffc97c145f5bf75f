"""Leave out barriers, waits and fences of compiled kernels one at a time: is it noticed?

python tests/helpers/ptx_mutants.py sm_90    # or sm_80; minutes

Every kernel is run once as it is, and its launches are noted. Each launch is then repeated with one
instruction changed, in three orders of programs and warps: a barrier or a fence is left out, a wait
lets one more group be under way; and with 16 bytes less of shared memory. A change is noticed if
the executor names a fault or the results differ. What is not noticed has to stand in `HARMLESS`
with the reason why it does no harm.
"""

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("tests/helpers", "tests/kernels/ptx", "bench", "")]

import ptx_driver
import ptx_machine
from op_calls import op_calls
from ptx_program import Program

from vtfast.ops import Ragged, diversity_select, ragged_attention, ragged_decode

CHANGED = re.compile(r"bar\.sync|cp\.async\.wait_group|wgmma\.wait_group|fence\.proxy|wgmma\.fence")


@dataclass
class Noted:
    """A launch as it was made: what it got, and what came out."""

    program: Program
    grid: tuple[int, ...]
    values: list[tuple[str, Any]]
    shared: int
    before: list[torch.Tensor]
    after: list[torch.Tensor]
    reached: Any


def tensors(values: list[tuple[str, Any]]) -> list[torch.Tensor]:
    return [value for _, value in values if isinstance(value, torch.Tensor)]


def longer_calls(dtype: torch.dtype) -> None:
    """What `op_calls` is too short for: every loop runs several times, in both tiles of attention."""
    for heads, queries, keys in ((4, [101, 64], [338, 101]), (28, [330, 270], [367, 411])):
        of_q, of_k = Ragged.from_lengths(queries, "cpu"), Ragged.from_lengths(keys, "cpu")
        q, k = torch.randn(of_q.total, heads, 64), torch.randn(of_k.total, 4, 64)
        for index in (None, torch.randperm(of_k.total)):
            given = (x.to(dtype) for x in (q, k, k))
            ragged_attention(*given, of_q, of_k, k_index=index, impl="triton")
    segments = Ragged.from_lengths([70, 90], "cpu")
    diversity_select(torch.randn(160, 300).to(dtype), segments, [9, 30], impl="triton")
    q, k = torch.randn(1, 4, 64).to(dtype), torch.randn(2500, 2, 64).to(dtype)
    ragged_decode(q, k, k, [2500], impl="triton")


def launches() -> Iterator[Noted]:
    """One launch of every shipped kernel and setting that the calls lead to."""
    noted: dict[str, Noted] = {}
    run = ptx_machine.run

    def note(program: Program, grid: Any, values: Any, shared: int, **how: Any) -> Any:
        before = [t.clone() for t in tensors(values)]
        ran = run(program, grid, values, shared, **how)
        after = [t.clone() for t in tensors(values)]
        kept = Noted(program, grid, values, shared, before, after, ran.reached)
        known = noted.get(program.name + str(program.code.tobytes()))
        if known is None or kept.reached.sum() > known.reached.sum():
            noted[program.name + str(program.code.tobytes())] = kept
        return ran

    ptx_driver.run, ptx_driver.settings.orders = note, 1
    for dtype in (torch.bfloat16, torch.float32):
        for call, given in op_calls("cpu", "triton").values():
            call(*(x.to(dtype) if x.is_floating_point() else x for x in given))
        longer_calls(dtype)
    yield from noted.values()


def outcome(launch: Noted, program: Program, shared: int) -> str:
    """The first fault, or that results differ; "" if nothing was noticed in any order."""
    for seed in range(4):
        for t, old in zip(tensors(launch.values), launch.before, strict=True):
            t.copy_(old)
        try:
            ptx_machine.run(program, launch.grid, launch.values, shared, seed=seed)
        except ptx_machine.PtxFault as fault:
            return str(fault).splitlines()[0]
        if not all(map(ptx_driver.same_bits, tensors(launch.values), launch.after)):
            return "other results"
    return ""


def mutants(program: Program, reached: Any) -> Iterator[tuple[int, Program]]:
    """The program with one instruction changed, for each that was reached."""
    for at, text in enumerate(program.statements):
        if reached[at] and CHANGED.match(text):
            changed = copy.copy(program)
            changed.code = program.code.copy()
            if "wait" in text:
                changed.code[at]["p"] += 1
            else:
                changed.code[at] = (ptx_machine.ops()["bra"], 0, 0, 0, 0, 0, 0, at + 1)
            yield at, changed


def main() -> None:
    ptx_driver.activate(sys.argv[1]); from vtfast.kernels import _launch; _launch.INTERPRETED=True; _launch.INTERPRETED_AS=sys.argv[1]
    total = noticed = 0
    for launch in list(launches()):
        program, silent = launch.program, []
        found = [(at, outcome(launch, one, launch.shared)) for at, one in mutants(program, launch.reached)]
        cut = outcome(launch, program, launch.shared - 16) if launch.shared else "-"
        print(f"{program.name}: {len(found)} changes, {sum(bool(why) for _, why in found)} noticed; shared cut: {bool(cut)}", flush=True)
        for at, why in found:
            if not why:
                print("   ", at, program.statements[at], program.places[at])


if __name__ == "__main__":
    main()
