"""Build the engine once, and run grids of decoded kernels on CPU tensors, every access checked."""

import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ptx_program import Program

SOURCE = Path(__file__).with_name("ptx_engine.cpp")
CACHE = Path(__file__).resolve().parents[3] / "build" / "ptx"
OPTIONS = "-O2 -std=c++17 -ffp-contract=off -fno-strict-aliasing -shared -fPIC -w -Wno-psabi"
MOST_FAULTS = 64
COUNTS = (
    "instructions", "loaded", "load_sectors", "stored", "store_sectors", "program_sectors",
    "launch_sectors", "shared", "wavefronts", "matrix", "barriers", "programs",
)  # fmt: skip
FORMATS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "fp32": "f", "fp64": "d"}
FORMATS |= {"u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}

# What went wrong, in the order of the engine's `Kind`, and what was expected.
KINDS = [line.split("; ") for line in """\
global memory outside of every tensor; an address inside one that was passed
unaligned global memory; a multiple of the {size} bytes accessed
global memory that {program} accesses too, one of the two writing; no order to matter
global memory that warp {other} accessed since the last barrier, one of the two writing; a barrier
shared memory beyond the {shared} bytes of a program; an address inside
unaligned shared memory; a multiple of the {size} bytes accessed
shared memory that warp {other} wrote since the last barrier is read; a barrier
shared memory that warp {other} (255: several) read since the last barrier is written; a barrier
shared memory that warp {other} wrote otherwise since the last barrier is written; a barrier
shared memory that was never written is read; a write before
shared memory that a copy is still under way to; a wait for the copy
lanes of the warp are missing; all 32 to take part
a barrier that {other} warps never reach; all warps to reach it
wgmma reads shared memory that warp {other} wrote; fence.proxy.async after the write
wgmma uses a register that was used since the last wgmma.fence; one in between
a register of a wgmma under way; wgmma.wait_group before
an operand of a wgmma under way was overwritten by warp {other}; wgmma.wait_group before
wgmma reads a transposed operand without swizzle; a layout known here
a warp goes on and on; an end""".splitlines()]  # fmt: skip


class PtxFault(AssertionError):
    """A kernel did what it must not; the message names kernel, source line, address and rule."""


@dataclass
class Ran:
    """One launch: what ran, how often each instruction did, and what was counted."""

    program: Program
    grid: tuple[int, ...]
    shared: int
    reached: np.ndarray
    counts: dict[str, int]


def compiler() -> str | None:  # None where there is none
    return next(filter(None, map(shutil.which, ("g++", "clang++"))), None)


@functools.cache
def engine() -> ctypes.CDLL:
    """The engine, built if its source, the compiler or the options are new."""
    command = compiler()
    if command is None:
        raise FileNotFoundError("executing PTX needs g++ or clang++ on the path; install one")
    options = OPTIONS.split() + ["-march=x86-64-v3"] * (os.uname().machine == "x86_64")
    version = subprocess.run([command, "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(SOURCE.read_bytes() + version + " ".join(options).encode()).hexdigest()
    library = CACHE / f"engine-{key[:16]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        subprocess.run([command, *options, str(SOURCE), "-o", str(made)], check=True)
        made.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.op_name.restype = ctypes.c_char_p
    return loaded


@functools.cache
def ops() -> dict[str, int]:
    """Number of each instruction the engine knows, by name."""
    known: dict[str, int] = {}
    while name := engine().op_name(len(known)):
        known[name.decode()] = len(known)
    return known


@functools.lru_cache(maxsize=1024)
def decoded(ptx: str) -> Program:
    return Program(ptx, ops())


def run(
    program: Program, grid: Sequence[int], values: Sequence[tuple[str, Any]], shared: int,
    *, seed: int = 0, check: bool = True, count: bool = False, most: int = 2**31,
) -> Ran:  # fmt: skip
    """Run a grid of programs; raises PtxFault if any does what it must not.

    values: Triton's type and the value of each parameter; a pointer's value is its tensor. shared:
    bytes of shared memory. seed: 0 runs programs and warps in order, others shuffle them. check:
    also look for races, and for reads of what was not written; else only bounds and alignment are
    checked. count: sectors and wavefronts too. most: instructions of a warp.
    """
    params = bytearray(max(program.params_size, 8))
    for (kind, value), (declared, at) in zip(values, program.params, strict=False):
        form = "Q" if kind.startswith("*") else FORMATS[kind]
        device = str(getattr(value, "device", "cpu"))
        if struct.calcsize(form) != int(declared[1:]) // 8 or device != "cpu":
            raise NotImplementedError(f"{program.name}: a {kind} on {device} passed as {declared}")
        if form == "Q" and not isinstance(value, int):
            value = 0 if value is None else value.data_ptr()
        struct.pack_into("<" + form, params, at, value)
    ranges, _maps = _ranges([v for _, v in values if hasattr(v, "data_ptr") and v.numel()])
    faults, reached = np.zeros((MOST_FAULTS, 8), np.uint64), np.zeros(len(program.code), np.uint64)
    counts, memory = np.zeros(len(COUNTS), np.uint64), np.frombuffer(params, np.uint8)
    arrays = (program.code, program.operands, program.constants, memory, ranges, faults)
    code, operands, constants, *others = (array.ctypes.data for array in (*arrays, counts, reached))
    sizes = len(program.code), program.slots, len(program.constants), program.warps, program.tracked
    how = len(ranges), shared, seed, check, count, most, MOST_FAULTS
    call = np.array([code, operands, constants, *sizes, *others, *grid, *how, 0], np.uint64)
    engine().launch(ctypes.c_void_p(call.ctypes.data))
    if num_faults := int(call[-1]):
        # By kind: what a program does outside of its tensors also meets other programs.
        said = (_message(program, shared, fault) for fault in sorted(faults[:num_faults].tolist()))
        raise PtxFault("\n".join(said))
    counted = dict(zip(COUNTS, map(int, counts), strict=True))
    return Ran(program, tuple(grid), shared, reached, counted)


def _message(program: Program, shared: int, fault: Sequence[int]) -> str:
    kind, at, number, warp, lane, size, address, other = fault
    program_of = f"program {other - 1}" if other < 2**32 - 1 else "several programs"
    words = {"other": other, "size": size, "shared": shared, "program": program_of}
    what, expected = (part.format(**words) for part in KINDS[kind])
    where = f"{program.statements[at][:80]}; address {address:#x}, program {number}, warp {warp}"
    said = f"{what}; expected {expected} ({where}, lane {lane})"
    return f"{program.name}, {program.places[at]}: {said}"


def _ranges(tensors: Sequence[Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The memory that a launch may touch: the elements of its tensors and nothing between them.

    Returns first byte, end, a map of the bytes inside (0: all are) and room for the engine, uint64
    [ranges, 4]; and the maps, to be kept.
    """
    spans = ((t.data_ptr(), t.data_ptr() + _bytes(t), t) for t in tensors)
    groups: list[tuple[int, int, list[Any]]] = []
    for low, high, t in sorted(spans, key=lambda span: span[:2]):
        if groups and low < groups[-1][1]:
            first, end, others = groups.pop()
            groups.append((first, max(high, end), [*others, t]))
        else:
            groups.append((low, high, [t]))
    ranges, kept = np.zeros((len(groups), 4), np.uint64), []
    for found, (low, high, inside) in zip(ranges, groups, strict=True):
        found[:2] = low, high
        if not all(t.is_contiguous() for t in inside):
            kept.append(np.zeros(high - low, np.uint8))
            found[2] = kept[-1].ctypes.data
            for t in inside:
                size, first = t.element_size(), kept[-1][t.data_ptr() - low :]
                strides = (*(size * step for step in t.stride()), 1)
                np.lib.stride_tricks.as_strided(first, (*t.shape, size), strides)[...] = 1
    return ranges, kept


def _bytes(t: Any) -> int:
    """From a tensor's first byte to its last."""
    steps = sum(step * (n - 1) for n, step in zip(t.shape, t.stride(), strict=True))
    return t.element_size() * (1 + steps)
