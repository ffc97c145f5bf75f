"""What the executor of PTX must notice: each fault made on purpose, named at its line.

The kernels are a few lines of PTX; faults of Triton's kernels are in test_ptx_faults_of_kernels.py.
"""

import re

import ptx_machine
import pytest
import torch
from ptx_machine import PtxFault
from ptx_program import Program, UnknownInstruction

HEAD = """\
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid {threads}
{{
    .reg .pred %p<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<20>;
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    mul.wide.u32 %rd2, %r2, 1;
    add.s64 %rd3, %rd1, %rd2;
    xor.b32 %r3, %r2, 128;
{body}
    ret;
}}
"""
# %r2: 4 bytes for each thread; %r3: of the thread in the other warp; %rd3: its element of x.
COPY = "cp.async.ca.shared.global [ %r2 + 0 ], [ %rd3 + 0 ], 0x4, 4;"
WAIT = "cp.async.commit_group;\ncp.async.wait_group 0;"
CLEAR = "\n".join(f"st.shared.b32 [%r4+{at}], 0;" for at in range(0, 4096, 512))
# Operands of wgmma in shared memory, which is written before: A at 0, B at 2048, without swizzle.
WRITTEN = f"shl.b32 %r4, %r1, 2;\nmov.u64 %rd4, 0x1000080000;\nmov.u64 %rd5, 0x1000080080;\n{CLEAR}"
FENCED = (WRITTEN, "fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.fence.sync.aligned;")
PRODUCT = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r10,%r11,%r12,%r13}, "
    "%rd4, %rd5, 0, 1, 1, 0, 0;"
)
FROM_REGISTERS = PRODUCT.replace("%rd4, %rd5", "{%r20,%r20,%r20,%r20}, %rd5").replace("0, 0;", "0;")
COMMIT, FINISH = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"


def run(body: str, *, threads: int = 64, shared: int = 256, x=None, grid=(1, 1, 1), seed=0):
    """Run these lines in a kernel with one tensor of a number for each thread; returns it."""
    lines = [f".loc 1 {n} 1 // body:{n}\n{line}" for n, line in enumerate(body.splitlines(), 1)]
    ptx = HEAD.format(threads=threads, body="\n".join(lines))
    x = torch.arange(threads, dtype=torch.int32) if x is None else x
    program = Program(ptx, ptx_machine.ops())
    ptx_machine.run(program, grid, [("*i32", x)], shared, seed=seed, most=10_000)
    return x


FAULTS = {
    "a loop without an end": ("$again: mov.u32 %r4, 0;\nbra $again;", "a warp goes on"),
    "a load one beyond the tensor": ("ld.global.b32 %r4, [ %rd3 + 4 ];", "global memory outside"),
    "a store one before the tensor": ("st.global.b32 [ %rd3 + -4 ], %r1;", "global memory outside"),
    "an address that is no multiple": ("ld.global.b32 %r4, [ %rd1 + 2 ];", "unaligned global"),
    "a vector at half its size": ("ld.global.v2.b32 {%r4, %r5}, [ %rd1 + 4 ];", "unaligned global"),
    "an element of another warp without a barrier": (
        "st.global.b32 [ %rd3 + 0 ], %r1;\nxor.b32 %r4, %r1, 32;\n"
        "mad.wide.u32 %rd4, %r4, 4, %rd1;\nld.global.b32 %r5, [ %rd4 + 0 ];",
        "body:4: global memory that warp",
    ),
    "a write over what another warp read, and the writer too": (
        "ld.global.b32 %r4, [ %rd1 + 128 ];\nsetp.eq.u32 %p1, %r1, 32;\n"
        "@%p1 st.global.b32 [ %rd1 + 128 ], 5;",
        "body:3: global memory that warp",
    ),
    "a shared address that wraps": ("mov.u32 %r4, -16;\nst.shared.b32 [%r4], 5;", "beyond"),
    "shared memory beyond its end": ("st.shared.b32 [%r2+4], %r1;", "shared memory beyond"),
    "shared memory at no multiple": ("st.shared.b32 [%r2+2], %r1;", "unaligned shared"),
    "a read of another warp's write": (
        "st.shared.b32 [%r2], %r1;\nld.shared.b32 %r4, [%r3];",
        "body:2: shared memory that warp",
    ),
    "a write over another warp's read": (
        "st.shared.b32 [%r2], %r1;\nbar.sync 0;\n"
        "ld.shared.b32 %r4, [%r2];\nst.shared.b32 [%r3], %r1;",
        "body:4: shared memory that warp",
    ),
    "two warps writing different numbers": ("st.shared.b32 [0], %r1;", "wrote otherwise"),
    "a read of nothing written": ("ld.shared.b32 %r4, [%r2];", "never written"),
    "a read while a copy is under way": (f"{COPY}\nld.shared.b32 %r4, [%r2];", "body:2: .*copy"),
    "a wait that lets a copy go on": (
        f"{COPY}\ncp.async.commit_group;\ncp.async.wait_group 1;\nld.shared.b32 %r4, [%r2];",
        "body:4: .*copy",
    ),
    "another warp's copy without a barrier": (
        f"{COPY}\n{WAIT}\nld.shared.b32 %r4, [%r3];",
        "a barrier",
    ),
    "a shuffle among some lanes": (
        "setp.lt.u32 %p1, %r1, 7;\n@%p1 shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;",
        "body:2: lanes of the warp are missing",
    ),
    "a shuffle whose mask names some lanes": ("shfl.sync.bfly.b32 %r4, %r1, 1, 31, 15;", "lanes"),
    "a barrier in a branch of some lanes": (
        "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra $end;\nbar.sync 0;\n$end: mov.u32 %r4, 0;",
        "body:3: lanes of the warp are missing",
    ),
    "a barrier that a warp never reaches": (
        "setp.lt.u32 %p1, %r1, 32;\n@%p1 ret;\nbar.sync 0;",
        "1 warps never reach",
    ),
}  # fmt: skip
PRODUCT_FAULTS = {
    "no proxy fence": ((WRITTEN, "bar.sync 0;", FENCED[-1], PRODUCT), "fence.proxy"),
    "no register fence": ((*FENCED[:-1], PRODUCT), "wgmma.fence"),
    "a register used after the fence": ((*FENCED, "mov.u32 %r10, 0;", PRODUCT), "wgmma.fence"),
    "a result before the wait": (
        (*FENCED, PRODUCT, COMMIT, "mov.u32 %r20, %r10;"),
        "a register of a wgmma under way",
    ),
    "a register of A before the wait": (
        (*FENCED[:-1], "mov.u32 %r20, 0;", FENCED[-1], FROM_REGISTERS, COMMIT, "mov.u32 %r20, 5;"),
        "a register of a wgmma under way",
    ),
    "a product that nobody commits": (
        (*FENCED, PRODUCT, FINISH, "mov.u32 %r20, %r10;"),
        "a register of a wgmma under way",
    ),
    "a product of one warp of four": (
        (*FENCED, "setp.lt.u32 %p1, %r1, 32;", f"@%p1 {PRODUCT}"),
        "lanes of the warp are missing",
    ),
    "its own rows written before the wait": (
        (*FENCED, PRODUCT, COMMIT, CLEAR, FENCED[1], FINISH),
        "was overwritten|a barrier",
    ),
    "an operand written before the wait": (
        (*FENCED, PRODUCT, COMMIT, "bar.sync 0;", CLEAR, "bar.sync 0;", FINISH),
        "was overwritten",
    ),
    "a transposed operand without swizzle": (
        (*FENCED, PRODUCT.replace("0, 0;", "0, 1;")),
        "a layout known here",
    ),
}
SOUND = {
    "its own element": "ld.global.b32 %r4, [ %rd3 + 0 ];\nst.global.b32 [ %rd3 + 0 ], %r4;",
    "a barrier between write and read": (
        "st.shared.b32 [%r2], %r1;\nbar.sync 0;\nld.shared.b32 %r4, [%r3];"
    ),
    "a barrier between global write and read": (
        "st.global.b32 [ %rd3 + 0 ], %r1;\nbar.sync 0;\nxor.b32 %r4, %r1, 32;\n"
        "mad.wide.u32 %rd4, %r4, 4, %rd1;\nld.global.b32 %r5, [ %rd4 + 0 ];"
    ),
    "two warps writing the same": "st.shared.b32 [0], 7;",
    "a copy waited for": f"{COPY}\n{WAIT}\nbar.sync 0;\nld.shared.b32 %r4, [%r3];",
    "lanes that part and meet": (
        "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra $end;\nmov.u32 %r4, 0;\n"
        "$end: shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;\nbar.sync 0;"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_at_its_line(body, said):
    with pytest.raises(PtxFault, match=said) as raised:
        run(body)
    assert "kernel, body:" in str(raised.value)


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_what_is_sound_is_not_called_a_fault(body):
    for seed in range(3):
        run(body, seed=seed)


@pytest.mark.parametrize(("lines", "said"), PRODUCT_FAULTS.values(), ids=PRODUCT_FAULTS)
def test_a_fault_around_wgmma_is_named(lines, said):
    with pytest.raises(PtxFault, match=said):
        run("\n".join(lines), threads=128, shared=4096)


def test_a_sound_wgmma_is_not_called_a_fault():
    lines = (*FENCED, PRODUCT, COMMIT, FINISH, "st.global.b32 [ %rd3 + 0 ], %r10;")
    assert not run("\n".join(lines), threads=128, shared=4096).any()


@pytest.mark.parametrize(
    "text",
    [
        "tanh.approx.f32 %r4, %r1",
        "add.f16 %r4, %r1, %r1",  # not the sum of its bits
        "setp.lt.f64 %p1, %rd1, %rd2",
        "setp.eq.bf16 %p1, %r1, %r2",
        "@%p1 bar.sync 0",
        "mov.pred %p1, 1",
    ],
)
def test_an_unknown_instruction_stops_with_its_name(text):
    with pytest.raises(
        UnknownInstruction, match=rf"kernel, body:1.*not known.*: {re.escape(text)}"
    ):
        run(f"{text};")
