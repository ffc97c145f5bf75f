"""Count what the kernels do at the shapes of 7B models, by executing their PTX on a CPU.

`make ptx-counts` writes what this finds (`ptx_counts_table.py`), with `VTFAST_TEST_DEVICE=sm_90`.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import aot
import torch
from devices import ARCH  # before anything imports triton

sys.path += [str(aot.ROOT / folder) for folder in ("bench", "tests/kernels/ptx")]
from shapes import LLAVA, QWEN, WORKLOADS, normal

from vtfast import ops
from vtfast.kernels.compact import compact
from vtfast.ops import Ragged

SHAPES = ("llava b1", "qwen 1k", "qwen 4k", "qwen 16k")  # of `shapes.py`: pictures, one a batch
# Pixels, or a grid of patches, that those are made of; 16,384 tokens take minutes here.
PICTURES = {"llava b1": (3, 336, 336), "qwen 1k": (64, 64), "qwen 4k": (128, 128)}
PROMPTS, CACHED = (640, 4096), 16384  # tokens
SHARE = 0.64  # of the rows of "qwen 4k" and "qwen 16k", which the default plan asks of diversity
Case = tuple[str, str, Callable[[], object]]  # op, shape, a call


def cases(shrink: int = 1, dtype: torch.dtype = torch.bfloat16) -> Iterator[Case]:
    """Every op at its shapes. shrink: divides numbers of tokens and of heads, for tests."""

    def fresh(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return normal(len(shape), *shape, device="cpu", dtype=kind)

    for w in (w for w in WORKLOADS if w.name in SHAPES):
        n, keep = w.total // shrink, w.total // shrink // 4
        where, picked = (Ragged.from_lengths([n], "cpu"), [keep]), f"{keep} of {n} rows"
        pick = partial(ops.random_select, *where, seed=7, stream=3)  # "auto" is eager on a CPU
        # A copy in PyTorch's memory: NumPy's, where the picks are, may begin inside a sector.
        index, pick = pick().clone(), partial(pick, impl="triton")
        scores = fresh(n, kind=torch.float32)
        best = partial(ops.topk_select, scores, *where, impl="triton")
        features = fresh(n, w.dim)
        along = [features, fresh(n, 128), fresh(n, 128), torch.arange(n)]
        gather = partial(ops.gather_rows, index, impl="triton")
        wide = f"{picked} x {w.dim}"
        more = f"{wide}, cos, sin, positions"
        visual, whole = torch.arange(n) + 32, Ragged.from_lengths([n + 64], "cpu")
        drop = partial(compact, index, visual, whole, [keep + 64], impl="triton")
        places = [torch.arange(n + 64)] * 2
        yield "random_select", picked, pick
        yield "topk_select", picked, best
        yield "compact", f"{keep} of {n} visual tokens, 64 of text", partial(drop, places=places)
        yield "gather_rows", wide, partial(gather, features)
        yield "gather_rows", more, partial(gather, *along)
        if w.name in PICTURES:
            yield "image_hash", *_hashing(w.name, shrink, fresh)
        for k in ([keep] if w.total <= 4096 else []) + [round(SHARE * n)] * (w.total >= 4096):
            call = partial(ops.diversity_select, features, where[0], [k], impl="triton")
            yield "diversity_select", f"{k} of {n} rows x {w.dim}", call
        if w.total <= 1024:
            for op in (ops.dpp_select, ops.coverage_select):
                weights = scores.sigmoid()
                call = partial(op, features, weights, *where, impl="triton")
                yield op.__name__, wide, call
    for _, heads, key_heads in (LLAVA, QWEN):
        fewer = min(shrink, key_heads)
        yield from _attention(shrink, fresh, heads // fewer, key_heads // fewer)


def _hashing(name: str, shrink: int, fresh: Callable[..., torch.Tensor]) -> tuple[str, Callable]:
    """A picture as the vision tower gets it."""
    *front, high, wide = PICTURES[name]
    if not front:
        pixels, grid = fresh(high * wide // shrink, 1176), torch.tensor([[1, high // shrink, wide]])
        call = partial(ops.image_hash, pixels, grid, impl="triton")
        return f"{len(pixels)} patches x 1176", call
    pixels = fresh(1, *front, high // shrink, wide)
    return f"picture of {high // shrink} x {wide}", partial(ops.image_hash, pixels, impl="triton")


def _attention(
    shrink: int, fresh: Callable[..., torch.Tensor], heads: int, key_heads: int
) -> Iterator[Case]:
    """Attention of whole prompts and of one query, to all rows or to a quarter through an index."""
    sizes = f"{heads} heads on {key_heads}"
    for n in (rows // shrink for rows in (*PROMPTS, CACHED)):
        q, k, v = (fresh(n, number, 128) for number in (heads, key_heads, key_heads))
        whole, one = Ragged.from_lengths([n], "cpu"), q[:1]
        index = torch.arange(0, n, 4)
        part = Ragged.from_lengths([len(index)], "cpu")
        indexed = {"k_index": index, "impl": "triton"}
        through = f"{len(index)} of {n} keys, {sizes}"
        call = partial(ops.last_query_scores, one, k, whole, scale=0.1, impl="triton")
        yield "last_query_scores", f"{n} keys, {sizes}", call
        call = partial(ops.ragged_decode, one, k, v)
        yield "ragged_decode", f"{n} keys, {sizes}", partial(call, [n], impl="triton")
        yield "ragged_decode", through, partial(call, part.lengths, **indexed)
        if n < CACHED // shrink:
            call = partial(ops.ragged_attention, q, k, v, whole, whole, impl="triton")
            yield "ragged_attention", f"{n} rows, {sizes}", call
            call = partial(ops.ragged_attention, q[: len(index)], k, v, part, part, **indexed)
            yield "ragged_attention", f"{through}, as many rows", call


def counted(call: Callable[[], object]) -> list[Any]:
    """What ran in a call: `ptx_machine.Ran` of each kernel, of all its launches together.

    Its counts also have their number. `programs` are those of one launch, since all are alike.
    """
    from ptx_driver import settings

    before = dict(vars(settings))
    vars(settings).update(orders=1, check=False, count=True, launches=[])
    try:
        call()
        return _by_kernel(settings.launches)
    finally:
        vars(settings).update(before)


def _by_kernel(launches: list[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for ran in launches:
        ran.counts["launches"] = 1
        known = found.setdefault(ran.program.name, ran)
        if known is not ran:
            assert (known.program, known.grid) == (ran.program, ran.grid)
            known.reached += ran.reached
            for name in ran.counts.keys() - {"programs"}:
                known.counts[name] += ran.counts[name]
    return list(found.values())


def flops(ran: Any) -> int:
    """Operations of the tensor cores; a warp computes 16 lines of a wgmma."""
    from ptx_machine import ops as numbers

    found = 0
    for name, columns, kind in (("mma", None, "p"), ("wgmma", "p", "q")):
        chosen = ran.program.code["op"] == numbers()[name]
        code, times = ran.program.code[chosen], ran.reached[chosen]
        for one, number in zip(code, times, strict=True):
            depth = 8 if one[kind] == 2 else 16  # tf32 or 16 bits
            found += 2 * 16 * int(one[columns] if columns else 8) * depth * int(number)
    return found


@cache
def assembled(ptx: str, fused: bool) -> dict[str, int]:
    """Registers a thread and instructions, from the assembler that Triton takes."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        gpu = re.search(r"\.target (\w+)", ptx).group(1)
        how = [f"--gpu-name={gpu}", "--regAllocOptLevel=2", *["--fmad=false"] * (not fused)]
        subprocess.run([aot._tool("ptxas"), *how, source, "-o", binary], check=True)
        command = [aot._tool("cuobjdump"), "--dump-resource-usage", "--dump-sass", binary]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sass = [code for code in aot.INSTRUCTION.findall(text) if code != "NOP"]
    return {"registers": int(aot.RESOURCES.search(text).group(1)), "sass": len(sass)}


def rows() -> Iterator[dict[str, Any]]:
    """One row per kernel and shape; kernels are compiled and run in this process."""
    import ptx_driver
    import triton

    from vtfast.kernels import _launch

    _launch.INTERPRETED, _launch.INTERPRETED_AS = True, ARCH  # so that CPU tensors are accepted
    ptx_driver.activate(ARCH)
    torch.set_num_threads(1)
    fused = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        fused[fn.jit_function.__name__] = compile["enable_fp_fusion"]
        return False  # go on and compile

    triton.knobs.runtime.jit_cache_hook = note
    for op, shape, call in cases():
        for ran in counted(call):
            program = ran.program
            row = {"op": op, "shape": shape, "kernel": program.name, "warps": program.warps}
            row |= assembled(program.ptx, fused[program.name])
            row |= {"ptx": len(program.statements), "shared_bytes": ran.shared}
            yield row | {"flops": flops(ran)} | ran.counts
