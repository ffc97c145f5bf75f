"""Leave out barriers, waits and fences of compiled kernels one at a time: is it noticed?

python tests/helpers/ptx_mutants.py    # make ptx-mutants

Every kernel is run once as it is, and its launches are noted. Each launch is then repeated with one
instruction changed, in four orders of programs and warps: a barrier or a fence is left out, a wait
lets one more group be under way; and with 16 bytes less of shared memory. A change is noticed if
the executor names a fault or the results differ. What nothing notices has to stand in `HARMLESS`,
with the reason why it does no harm, and so has what the calls never reach; what stands there and is
noticed fails too.
"""

import copy
import linecache
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("sm_80", "sm_90")
CHANGED = re.compile(r"(bar\.sync|cp\.async\.wait|wgmma\.wait|fence\.proxy|wgmma\.fence)")
ORDERS = 4

# Lines of source that are named below more than once.
KEYS = "k = tl.load(k_ptr + row[None, :] * stride_kt + d[:, None], mask=k_mask, other=0.0)"
LOGITS = "logits = tl.dot(q, dot_operand(k), input_precision=PRECISION)"
DOTS = "dots = tl.dot(a, b, dots, input_precision=PRECISION)"
WORDS = "words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, COLUMNS])"
SUM = "return core.reduce(input, axis, _sum_combine, keep_dims=keep_dims)"

# Why leaving it out does no harm. None of these addresses depends on what is in the tensors.
BOTH, HOPPER = "sm_80 and sm_90: ", "sm_90: "
HARMLESS = {
    "the copies that follow go to a buffer of the pipeline that nobody has used yet": [
        f"{BOTH}_attention_kernel, once, bar.sync: {KEYS} #1",
        f"{BOTH}_attention_kernel, once, bar.sync: {KEYS} #2",
        # In the smaller tile, where this loop has two rounds at most and three buffers.
        f"{HOPPER}_attention_kernel, in a loop, bar.sync: {KEYS} #4",
        f"{BOTH}_split_kernel, once, bar.sync: {KEYS} #1",
        f"{BOTH}_logits_kernel, once, bar.sync: "
        "k = tl.load(k_ptr + k_offset + d[None, :], mask=k_mask, other=0.0) #1",
        f"{BOTH}_distances_kernel, once, bar.sync: "
        "a = tl.load(i_rows + d[None, :], mask=i_live[:, None] & (d < D)[None, :], other=0.0) #1",
    ],
    "after the loop nothing uses what may still be under way": [
        f"{BOTH}_attention_kernel, once, cp.async.wait: "
        "for start in range(unmasked, end, KEYS): #1",
        f"{HOPPER}_attention_kernel, once, wgmma.wait: for start in range(0, unmasked, KEYS): #1",
        f"{BOTH}_distances_kernel, once, cp.async.wait: for start in range(0, D, DEPTH): #1",
        f"{BOTH}_logits_kernel, once, cp.async.wait: for start in range(begin, end, KEYS): #1",
        f"{BOTH}_split_kernel, once, cp.async.wait: "
        "for start in range(split * share, end, KEYS): #1",
    ],
    "the loop's last barrier comes after its last reads of what is written next": [
        f"{BOTH}_attention_kernel, once, bar.sync: for start in range(0, unmasked, KEYS): #1",
        f"{BOTH}_attention_kernel, once, bar.sync: for start in range(unmasked, end, KEYS): #1",
        f"{BOTH}_logits_kernel, once, bar.sync: for start in range(begin, end, KEYS): #1",
    ],
    "another fence stands between the writes, or the uses of registers, and the product": [
        f"{HOPPER}_attention_kernel, once, fence.proxy: {LOGITS} #1",
        f"{HOPPER}_attention_kernel, once, fence.proxy: {LOGITS} #2",
        f"{HOPPER}_distances_kernel, in a loop, fence.proxy: {DOTS} #2",
        f"{HOPPER}_distances_kernel, in a loop, fence.proxy: {DOTS} #3",
        f"{HOPPER}_distances_kernel, in a loop, wgmma.fence: {DOTS} #2",
    ],
    "the next product adds to the same accumulators": [
        f"{HOPPER}_distances_kernel, in a loop, wgmma.wait: {DOTS} #1",
    ],
    "the program has one warp": [
        f"{BOTH}_merge_kernel, once, bar.sync: "
        "scores += tl.sum(tl.exp2(logits - base[:, None]) / l_i[:, None], axis=0) #1",
    ],
    "the search before it ends in barriers; this one does not rely on how that is compiled": [
        f"{BOTH}_greedy_kernel, once, bar.sync: tl.debug_barrier()  "
        "# the marks are read back in the layout that `store_picks` needs #1",
        f"{BOTH}_determinant_kernel, in a loop, bar.sync: tl.debug_barrier()  "
        "# the picked row's numbers were stored by another thread #1",
    ],
    # Not shown: the same code on the first words of rows is tried.
    "reached only where the words of two rows tie, once in billions of draws": [
        f"{BOTH}_random_select_kernel, {where}, bar.sync: {line} #{number}, not reached"
        for where, line, numbers in (
            ("once", WORDS, range(6, 12)),
            ("once", SUM, range(1, 4)),
            ("in a loop", SUM, range(4, 7)),
        )
        for number in numbers
    ],
}


@dataclass
class Noted:
    """A launch as it was made: what it got, what came out, how often each instruction ran."""

    program: Any
    grid: tuple[int, ...]
    values: list[tuple[str, Any]]
    shared: int
    before: list[torch.Tensor]
    after: list[torch.Tensor]
    reached: Any

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [value for _, value in self.values if isinstance(value, torch.Tensor)]


def longer_calls(dtype: torch.dtype) -> None:
    """What `op_calls` is too short for: every loop runs several times, in both attention tiles."""
    from vtfast.ops import Ragged, diversity_select, dpp_select, ragged_attention, ragged_decode

    sizes = (4, 2, [101, 64], [338, 101]), (28, 4, [330, 270], [367, 411])
    for heads, key_heads, queries, keys in sizes:
        of_q, of_k = Ragged.from_lengths(queries, "cpu"), Ragged.from_lengths(keys, "cpu")
        q, k = torch.randn(of_q.total, heads, 64), torch.randn(of_k.total, key_heads, 64)
        for index in (None, torch.randperm(of_k.total)):
            given = (x.to(dtype) for x in (q, k, k))
            ragged_attention(*given, of_q, of_k, k_index=index, impl="triton")
    segments = Ragged.from_lengths([70, 90], "cpu")
    diversity_select(torch.randn(160, 300).to(dtype), segments, [9, 30], impl="triton")
    of = Ragged.from_lengths([90, 500], "cpu")
    x = torch.randn(of.total, 60).to(dtype)  # of rank 60: after as many picks no row has a gain
    dpp_select(x, torch.rand(of.total), of, [40, 120], impl="triton")
    q, k = torch.randn(1, 4, 64).to(dtype), torch.randn(2500, 2, 64).to(dtype)
    ragged_decode(q, k, k, [2500], impl="triton")


def launches() -> list[Noted]:
    """The longest launch of every kernel and setting that the calls lead to."""
    import ptx_driver
    from op_calls import op_calls

    noted: dict[tuple[str, bytes], Noted] = {}
    run = ptx_driver.run

    def note(program: Any, grid: Any, values: Any, shared: int, **how: Any) -> Any:
        one = Noted(program, grid, values, shared, [], [], None)
        one.before = [t.clone() for t in one.tensors]
        ran = run(program, grid, values, shared, **how)
        one.after, one.reached = [t.clone() for t in one.tensors], ran.reached
        key = program.name, program.code.tobytes()
        if key not in noted or ran.reached.sum() > noted[key].reached.sum():
            noted[key] = one
        return ran

    ptx_driver.run, ptx_driver.settings.orders = note, 1
    for dtype in (torch.bfloat16, torch.float32):
        for call, given in op_calls("cpu", "triton").values():
            call(*(x.to(dtype) if x.ndim > 1 else x for x in given))  # scores stay fp32
        longer_calls(dtype)
    ptx_driver.run = run
    return list(noted.values())


def is_noticed(launch: Noted, program: Any, shared: int) -> bool:
    """Whether any order of programs and warps shows a fault or other results."""
    import ptx_driver

    most = 1000 + 2 * int(launch.reached.sum())  # where warps disagree, loops may have no end
    for seed in range(ORDERS):
        for t, old in zip(launch.tensors, launch.before, strict=True):
            t.copy_(old)
        try:
            ptx_driver.run(program, launch.grid, launch.values, shared, seed=seed, most=most)
        except ptx_driver.PtxFault:
            return True
        if not all(map(ptx_driver.same_bits, launch.tensors, launch.after)):
            return True
    return False


def mutants(launch: Noted) -> Iterator[tuple[str, Any]]:
    """What to call each change of one instruction, and the changed program; None if not reached."""
    from ptx_machine import ops

    program, seen = launch.program, Counter()
    jumps = [
        (at, int(one["x"])) for at, one in enumerate(program.code) if one["op"] == ops()["bra"]
    ]
    for at, text in enumerate(program.statements):
        if not (kind := CHANGED.match(text)):
            continue
        where = "in a loop" if any(to <= at <= jump for jump, to in jumps) else "once"
        name = f"{program.name}, {where}, {kind.group()}: {source_line(program.places[at])}"
        seen[name] += 1
        changed = copy.copy(program)
        changed.code = program.code.copy()
        if "wait" in text:
            changed.code[at]["p"] += 1
        else:  # to the next instruction
            changed.code[at] = (ops()["bra"], 0, 0, 0, 0, 0, 0, at + 1)
        yield f"{name} #{seen[name]}", changed if launch.reached[at] else None


def source_line(place: str) -> str:
    """The line of source that an instruction comes from, without what is around it."""
    import triton.language.standard

    file, line, _ = place.split(" ")[0].split(":")
    library = Path(triton.language.standard.__file__)
    path = library if file == library.name else ROOT / "kernels" / file
    return linecache.getline(str(path), int(line)).strip()


def one_gpu(arch: str) -> None:
    """Print what nothing notices or reaches, a line each, and on stderr how many there were."""
    sys.path[:0] = [
        str(ROOT / part) for part in ("tests/helpers", "tests/kernels/ptx", "bench", "")
    ]
    import ptx_driver

    ptx_driver.activate(arch)
    from vtfast.kernels import _launch

    _launch.INTERPRETED, _launch.INTERPRETED_AS = True, arch  # so that CPU tensors are accepted
    tried: dict[str, list[bool]] = {}  # by name: whether each change was noticed
    for launch in launches():
        for name, changed in mutants(launch):
            found = tried.setdefault(name, [])
            found += [is_noticed(launch, changed, launch.shared)] if changed else []
        if launch.shared:
            name = f"{launch.program.name}, 16 bytes less of shared memory"
            found = tried.setdefault(name, [])
            found.append(is_noticed(launch, launch.program, launch.shared - 16))
        total, silent = (sum(map(count, tried.values())) for count in (len, _silent))
        print(f"{arch}: {total} changes, {silent} silent", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for name, found in tried.items():
        if not all(found) or not found:
            print(name if found else f"{name}, not reached", flush=True)


def _silent(found: list[bool]) -> int:
    return found.count(False)


def main() -> int:
    silent: dict[str, list[str]] = {}  # by name: the GPUs
    for arch in ARCHS:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "ptx" / "triton"))
        done = subprocess.run(
            [sys.executable, __file__, arch], env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            return done.returncode
        for name in done.stdout.splitlines():
            silent.setdefault(name, []).append(arch)
    found = {f"{' and '.join(archs)}: {name}" for name, archs in silent.items()}
    known = {name for names in HARMLESS.values() for name in names}
    for name in sorted(found - known):
        print("nothing notices:", name)
    for name in sorted(known - found):
        print("noticed, or gone, though in HARMLESS:", name)
    print(f"{len(found & known)} kinds of changes that nothing notices stand in HARMLESS.")
    return int(found != known)


if __name__ == "__main__":
    sys.exit(one_gpu(sys.argv[1]) if sys.argv[1:] else main())
