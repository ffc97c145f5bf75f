"""Every instruction on registers that the executor of PTX knows, against NumPy, on hard numbers."""

import ctypes
import operator as o

import numpy as np
import ptx_machine
import pytest
import torch
from ptx_program import Program

KERNEL = """\
.visible .entry kernel(
    .param .u64 kernel_param_0
)
.reqntid 1024
{
    .reg .pred %p<9>;
    .reg .b32 %r<50>;
    .reg .b64 %rd<20>;
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 8;
    mov.u32 %r2, %ctaid.x;
    mad.wide.u32 %rd2, %r2, 8192, %rd2;
    add.s64 %rd4, %rd1, %rd2;
BODY
    ret;
}
"""

KINDS = {"u": "u4", "s": "i4", "f": "f4", "h": "u2", "U": "u8", "S": "i8", "p": "?"}
EDGES = [0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 63, 64, 255, 0x80, 0x7FFF, 0x8000, 0xFFFF, 0x76543210]
EDGES += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x9ABC_DEF0_8765_4321]
# Zeros, infinities, NaN, subnormals, ties of bf16, fp16 and tf32, the ends of fp16 and fp32.
FLOATS = [0, 2**31, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001, 1, 0x80000001]
FLOATS += [0x3F808000, 0x3F818000, 0xBF818000, 0x3F801000, 0x3F803000, 0x3F800800, 0x477FE000]
FLOATS += [0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x7F7FFFFF, 0x807FFFFF, 0x40490FDB]
FLOATS += [0xC2FC0000, 0xC3150000, 0x7C00, 0x7C01, 0xFC00, 0x8001, 0x3C00]
BITS = np.array(
    [*EDGES, *FLOATS, 0x3F800000, 0xC0000000, 3, 5, 0x5410, 0xF9E8, 100, 0x4B800001], np.uint64
)
A, B = (x.ravel() for x in np.meshgrid(BITS, BITS))
C = np.random.default_rng(0).permutation(A)
FMA = ctypes.CDLL(None).fmaf
FMA.restype, FMA.argtypes = ctypes.c_float, [ctypes.c_float] * 3


def shifted(a, n, left=False):  # Python's own numbers: no shift is too wide
    bits = 8 * a.itemsize
    moved = [
        (int(x) << int(k) if k < bits else 0) if left else int(x) >> int(k)
        for x, k in zip(a, n, strict=True)
    ]
    return np.array([x % 2**bits for x in moved], f"u{a.itemsize}")


def smallest(a, b, sign=1):  # -0 is below +0, and a NaN loses
    def order(x):
        bits = x.view("i4").astype(np.int64)
        return np.where(
            np.isnan(x), 2**40, sign * np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
        )

    return np.where(order(a) <= order(b), a, b)


def field(a, at, size):  # as the PTX manual words it
    at, size = at & 255, size & 255
    signed = a.dtype == np.int32
    a = a.astype(np.int64)
    last = np.minimum(at + size.astype(int) - 1, 31)
    fill = np.where(size == 0, 0, a >> np.maximum(last, 0) & 1) * signed
    bit = (
        np.where((k < size) & (at + k < 32), a >> np.minimum(at + k, 31) & 1, fill)
        for k in range(32)
    )
    return sum(x << k for k, x in enumerate(bit))


def permuted(a, b, how):
    chosen = [
        (a | b.astype("u8") << np.uint64(32)) >> (how >> 4 * k & 7).astype("u8") * np.uint64(8)
        & np.uint64(255)
        for k in range(4)
    ]
    return sum(
        np.where(how >> 4 * k & 8, x // 128 * 255, x).astype("u8") << np.uint64(8 * k)
        for k, x in enumerate(chosen)
    )


def half(x, dtype=torch.float16):
    bits = torch.tensor(x).to(dtype).view(torch.int16).numpy().view("u2")
    return np.where(np.isnan(x), 0x7FFF, bits).astype("u4")


def tf32(x):
    _, exponent = np.frexp(x.astype(float))
    step = np.ldexp(1.0, np.maximum(exponent, -125) - 11)
    rounded = np.copysign(np.floor(np.abs(x) / step + 0.5) * step, x).astype("f4").view("u4")
    return np.where(np.isnan(x), 0x7FFFFFFF, np.where(np.isinf(x), x.view("u4"), rounded))


def bf16(x):
    return half(x, torch.bfloat16)


def ex2(x):
    flushed = np.where(np.abs(x) < 2.0**-126, 0, x)
    y = np.exp2(flushed.astype(float)).astype("f4")
    return np.where(y < 2.0**-126, 0, y)


def ordered(compare):
    return lambda a, b: compare(a, b) & ~np.isnan(a) & ~np.isnan(b)


def quotient(a, b):
    x, y = a.astype(np.int64), np.where(b == 0, 1, b).astype(np.int64)
    return np.where(b == 0, -1, np.sign(x) * np.sign(y) * (abs(x) // abs(y)))


def quotient_64(a, b):  # Python's own numbers: -2^63 has no opposite in int64
    found = [
        -1 if y == 0 else abs(x) // abs(y) * (-1 if (x < 0) != (y < 0) else 1)
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    return np.array([x % 2**64 for x in found], "u8").view("i8")


def wide(f, kind):
    return lambda a, b, *c: f(a.astype(kind), b.astype(kind), *c)


def mad(a, b, c):
    return a * b + c


# Results first. In a text of several words {0} is the result, {1} the first operand.
TESTED = {
    name: (kinds, f)
    for kinds, group in {
        "hhh": {
            "add.s16": o.add,
            "sub.s16": o.sub,
            "mul.lo.s16": o.mul,
            "and.b16": o.and_,
            "or.b16": o.or_,
            "xor.b16": o.xor,
            "mul.hi.u16": lambda a, b: a.astype("u4") * b >> 16,
        },
        "uuu": {
            "add.s32": o.add,
            "sub.s32": o.sub,
            "mul.lo.s32": o.mul,
            "and.b32": o.and_,
            "or.b32": o.or_,
            "xor.b32": o.xor,
            "min.u32": np.minimum,
            "div.u32": lambda a, b: np.where(b == 0, -1, a // np.maximum(b, 1)),
            "shr.u32": shifted,
            "shr.b32": shifted,
            "mul.hi.u32": lambda a, b: a.astype("u8") * b >> np.uint64(32),
            "shl.b32": lambda a, n: shifted(a, n, True),
        },
        "UUU": {
            "add.s64": o.add,
            "sub.s64": o.sub,
            "mul.lo.s64": o.mul,
            "and.b64": o.and_,
            "or.b64": o.or_,
            "xor.b64": o.xor,
        },
        "UUu": {"shr.u64": shifted, "shl.b64": lambda a, n: shifted(a, n, True)},
        "hhu": {"shl.b16": lambda a, n: shifted(a, n, True), "shr.u16": shifted},
        "ssu": {"shr.s32": shifted},
        "sss": {
            "min.s32": np.minimum,
            "max.s32": np.maximum,
            "div.s32": quotient,
            "min.relu.s32": lambda a, b: np.maximum(0, np.minimum(a, b)),
        },
        "SSS": {"div.s64": quotient_64, "min.s64": np.minimum, "max.s64": np.maximum},
        "SSu": {"shr.s64": shifted},
        "ss": {"neg.s32": o.neg},
        "UU": {"mov.b64": o.pos},
        "uuuu": {
            "mad.lo.s32": mad,
            "prmt.b32": permuted,
            "bfe.u32": field,
            "shf.l.wrap.b32": lambda a, b, n: (b.astype("u8") << 32 | a) << (n & 31) >> 32,
        },
        "usuu": {"bfe.s32": field},
        "UUUU": {"mad.lo.s64": mad},
        "Sss": {"mul.wide.s32": wide(o.mul, "i8")},
        "UuuU": {"mad.wide.u32": wide(mad, "u8")},
        "SssS": {"mad.wide.s32": wide(mad, "i8")},
        "uuup": {"selp.b32": lambda a, b, p: np.where(p, a, b)},
        "UUUp": {"selp.b64": lambda a, b, p: np.where(p, a, b)},
        "fff": {
            "add.f32": o.add,
            "sub.f32": o.sub,
            "mul.f32": o.mul,
            "div.full.f32": o.truediv,
            "min.f32": smallest,
            "max.f32": lambda a, b: smallest(a, b, -1),
        },
        "ffff": {"fma.rn.f32": lambda *x: [FMA(*map(float, y)) for y in zip(*x, strict=True)]},
        "ff": {
            "neg.f32": o.neg,
            "abs.f32": np.abs,
            "sqrt.rn.f32": np.sqrt,
            "ex2.approx.ftz.f32": ex2,
        },
        "uf": {"cvt.rn.bf16.f32": bf16, "cvt.rn.f16.f32": half, "cvt.rna.tf32.f32": tf32},
        "uff": {
            "cvt.rn.bf16x2.f32": lambda a, b: bf16(a) << 16 | bf16(b),
            "cvt.rn.f16x2.f32": lambda a, b: half(a) << 16 | half(b),
        },
        "fh": {
            "cvt.f32.bf16": lambda a: (a.astype("u4") << 16).view("f4"),
            "cvt.f32.f16": lambda a: a.view("f2").astype("f4"),
        },
        "Uu": {"cvt.u64.u32": o.pos},
        "Ss": {"cvt.s64.s32": o.pos},
        "SU": {"cvt.s64.s32 {0}, {1}": lambda a: a.astype("i4")},
        "fs": {"cvt.rn.f32.s32": lambda a: a.astype("f4")},
        "fU": {"cvt.rn.f32.f64": lambda a: a.view("f8").astype("f4")},
        "hu": {"cvt.u16.u32": o.pos},
        "uh": {
            "cvt.s16.s8": lambda a: a.astype("i1").astype("i2").view("u2"),
            "cvt.u32.u16": o.pos,
            # Of a register never written, which holds 0xA5 in every byte, 16 bits and no more.
            "mov.b32 {0}, {{%r41, {1}}}": lambda a: a.astype("u4") << 16 | 0xA5A5,
        },
        "pff": {
            "setp.eq.f32": o.eq,
            "setp.ne.f32": ordered(o.ne),
            "setp.leu.f32": lambda a, b: ~(a > b),
            "setp.num.f32": ordered(lambda a, b: a == a),
            **{f"setp.{n}.f32": getattr(o, n) for n in ("lt", "le", "gt", "ge")},
        },
        **{
            f"p{k}{k}": {f"setp.{n}.{t}": getattr(o, n) for n in ["eq", "lt", "le", "gt", "ge"]}
            for k, t in zip("sS", ("s32", "s64"), strict=True)
        },
        "phh": {"setp.eq.b16": o.eq, "setp.ne.b16": o.ne, "setp.gt.u16": o.gt},
        "puu": {f"setp.{n}.u32": getattr(o, n) for n in ["eq", "ne", "lt", "le", "gt", "ge"]},
        "pUU": {f"setp.{n}.u64": getattr(o, n) for n in ["eq", "ne", "lt", "le", "gt", "ge"]},
        "uhh": {
            "mul.wide.u16": wide(o.mul, "u4"),
            "mov.b32 {0}, {{{1}, {2}}}": lambda a, b: a | b.astype("u4") << 16,
        },
        "Uuu": {
            "mul.wide.u32": wide(o.mul, "u8"),
            "mov.b64 {0}, {{{1}, {2}}}": lambda a, b: a | b.astype("u8") << np.uint64(32),
        },
        "uU": {
            "cvt.u32.u64": o.pos,
            "mov.b64 {{%r40, {0}}}, {1}": lambda a: a >> np.uint64(32),
            "mov.b64 {{{0}, %r40}}, {1}": o.pos,
        },
        "uu": {
            "not.b32": o.invert,
            "mov.b32": o.pos,
            "popc.b32": lambda a: [int(x).bit_count() for x in a],
            "mov.b32 {{%r40, {0}}}, {1}": lambda a: a >> 16,
            "mov.b32 {{{0}, %r40}}, {1}": lambda a: a & 0xFFFF,
        },
    }.items()
    for name, f in group.items()
}
# Fetching, storing, and what lanes, warps and the units of matrices do together.
ELSEWHERE = {
    "bra",
    "ret",
    "bar.sync",
    "ld.param",
    "ld.global",
    "ld.shared",
    "st.global",
    "st.shared",
    "cp.async",
    "mma",
    "wgmma",
    "atom.global.gpu.relaxed.min.s32",
    "atom.global.gpu.relaxed.add.u64",
    "cp.async.commit_group",
    "cp.async.wait_group",
    "bar.warp.sync",
    "ldmatrix",
    "shfl.sync.up.b32",
    "shfl.sync.bfly.b32",
    "shfl.sync.idx.b32",
    "redux.sync.add.s32",
    "redux.sync.min.s32",
    "redux.sync.max.s32",
    "wgmma.wait_group.sync.aligned",
    "wgmma.commit_group.sync.aligned",
    "stmatrix",
    "wgmma.fence.sync.aligned",
    "fence.proxy.async.shared::cta",
}


def prepared(text: str, kinds: str) -> tuple[Program, str]:
    """A program that stores, 8 bytes a thread, what this gives for operands as far apart."""
    lines, names, n = [], [], 8 * len(A)
    for k, kind in enumerate(kinds):
        names.append(f"%rd{10 + k}" if kind in "US" else f"%r{10 + k}")
        size = 64 if kind in "US" else 16 if kind == "h" else 32
        if k:
            lines.append(f"ld.global.b{size} {names[k]}, [ %rd4 + {k * n} ];")
        if kind == "p":
            names[k] = f"%p{1 + k}"
        if kind == "p" and k:
            lines.append(f"setp.ne.u32 {names[k]}, %r{10 + k}, 0;")
    text = text if " " in text else text + " " + ", ".join(f"{{{k}}}" for k in range(len(kinds)))
    lines.append(text.format(*names) + ";")
    if kinds[0] == "p":
        lines.append(f"selp.b32 %r10, 1, 0, {names[0]};")
    lines.append(
        "st.global.b64 [ %rd4 + 0 ], %rd10;"
        if kinds[0] in "US"
        else "st.global.b32 [ %rd4 + 0 ], %r10;"
    )
    program = Program(KERNEL.replace("BODY", "\n".join(lines)), ptx_machine.ops())
    numbers = dict(zip(ptx_machine.ops().values(), ptx_machine.ops(), strict=True))
    at = program.statements.index(text.format(*names))
    return program, numbers[program.code[at]["op"]]


@pytest.mark.parametrize("text", TESTED)
def test_an_instruction_gives_what_numpy_gives(text):
    kinds, f = TESTED[text]
    program, _ = prepared(text, kinds)
    x = np.stack([np.zeros_like(A), A, B, C])
    low = {
        k: np.ascontiguousarray(x.astype(f"u{np.dtype(KINDS[k]).itemsize}")).view(KINDS[k])
        for k in kinds
        if k != "p"
    }
    low["p"] = x.astype("u4") != 0
    with np.errstate(all="ignore"):
        expected = f(*(low[kind][k + 1] for k, kind in enumerate(kinds[1:])))
        expected = np.asarray(expected).astype(KINDS[kinds[0]])
    memory = torch.from_numpy(x.view(np.int64))
    ptx_machine.run(program, (len(A) // 1024, 1, 1), [("*i64", memory)], 0, check=False)
    found = x[0].astype(f"u{expected.itemsize}").view(expected.dtype)
    if kinds[0] == "f" and not text.startswith("neg"):
        same = (np.isnan(found) & np.isnan(expected)) | (found.view("u4") == expected.view("u4"))
        if text.startswith("ex2"):
            same |= np.abs(found.view("i4") - expected.view("i4")) <= 1
    else:  # nothing above the bits of the result either
        same = x[0] == expected.view(f"u{expected.itemsize}")
    wrong = np.flatnonzero(~same)
    shown = [(hex(A[i]), hex(B[i]), hex(C[i]), found[i], expected[i]) for i in wrong[:5]]
    assert not len(wrong), (len(wrong), shown)


def test_every_instruction_is_tested():
    here = {prepared(text, kinds)[1] for text, (kinds, _) in TESTED.items()}
    assert here | ELSEWHERE == set(ptx_machine.ops())
    assert not here & ELSEWHERE
