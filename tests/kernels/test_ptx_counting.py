"""What the executor of PTX counts, against numbers worked out by hand.

A warp moves memory in sectors of 32 bytes, and shared memory has 32 banks of 4 bytes: an access
takes as many wavefronts as the bank with the most different words in it.
"""

import ptx_machine
import pytest
import torch

PROBE = """
.visible .entry probe(
	.param .u64 probe_param_0
)
.reqntid 32
{{
	.reg .pred %p<2>;
	.reg .b16 %h<3>;
	.reg .b32 %r<16>;
	.reg .b64 %rd<4>;
	ld.param.b64 %rd1, [probe_param_0];
	mov.u32 %r1, %tid.x;
	setp.lt.u32 %p1, %r1, 8;
	mul.lo.s32 %r2, %r1, {stride};
	cvt.s64.s32 %rd2, %r2;
	add.s64 %rd3, %rd1, %rd2;
{body}
	ret;
}}
"""
DATA = {"b16": "%h1", "b32": "%r3", "v2.b32": "{%r3, %r4}", "v4.b32": "{%r3, %r4, %r5, %r6}"}


def counts(stride, *body):
    """Of one warp; %rd3 and %r2 are `stride` bytes apart from lane to lane, %p1 is its first 8."""
    program = ptx_machine.decoded(PROBE.format(stride=stride, body=";\n".join([*body, ""])))
    memory = [("*i32", torch.zeros(4096, dtype=torch.int32))]
    return ptx_machine.run(program, (1, 1, 1), memory, 8192, check=False, count=True).counts


@pytest.mark.parametrize(
    ("stride", "guard", "kind", "offset", "fewest", "sectors"),
    [
        pytest.param(4, "", "b32", 0, 4, 4, id="one after another"),
        pytest.param(4, "", "b32", 4, 4, 5, id="one after another, shifted"),
        pytest.param(8, "", "b32", 0, 4, 8, id="every other"),
        pytest.param(128, "", "b32", 0, 4, 32, id="far apart"),
        pytest.param(0, "", "b32", 0, 1, 1, id="all the same"),
        pytest.param(4, "@%p1 ", "b32", 0, 1, 1, id="eight lanes"),
        pytest.param(4, "@%p1 ", "b32", 16, 1, 2, id="eight lanes, shifted"),
        pytest.param(2, "", "b16", 0, 2, 2, id="2 bytes"),
        pytest.param(16, "", "v4.b32", 0, 16, 16, id="16 bytes"),
        pytest.param(32, "", "v2.b32", 0, 8, 32, id="8 of 32 bytes"),
        pytest.param(32, "", "v4.b32", 0, 16, 32, id="16 of 32 bytes"),
    ],
)
def test_sectors_of_an_access(stride, guard, kind, offset, fewest, sectors):
    data, at = DATA[kind], f"[%rd3+{offset}]"
    found = counts(stride, f"{guard}ld.global.{kind} {data}, {at}")
    assert (found["loaded"], found["load_sectors"]) == (fewest, sectors)
    assert found["program_sectors"] == found["launch_sectors"] == sectors
    found = counts(stride, f"{guard}st.global.{kind} {at}, {data}")
    assert (found["stored"], found["store_sectors"]) == (fewest, sectors)


@pytest.mark.parametrize(
    ("size", "atomic"),
    [(4, "min.s32 %r3, [%rd3], %r1"), (8, "add.u64 %rd2, [%rd3], %rd1")],
)
def test_an_atomic_counts_as_a_store(size, atomic):
    found = counts(size, f"atom.global.gpu.relaxed.{atomic}")
    assert (found["loaded"], found["stored"], found["store_sectors"]) == (0, size, size)


def test_a_sector_that_is_read_again_counts_once_for_the_memory():
    found = counts(4, "ld.global.b32 %r3, [%rd3]", "ld.global.b32 %r4, [%rd3+64]")
    assert (found["load_sectors"], found["launch_sectors"]) == (8, 6)


def test_an_asynchronous_copy_reads_and_writes():
    copy = "cp.async.cg.shared.global [%r2], [%rd3], 16, %r4"
    found = counts(16, "mov.b32 %r4, 16", copy)
    assert (found["loaded"], found["load_sectors"]) == (16, 16)
    assert (found["shared"], found["wavefronts"]) == (4, 4)
    found = counts(16, "selp.b32 %r4, 16, 0, %p1", copy)  # the rest is filled with zeros
    assert (found["loaded"], found["load_sectors"]) == (4, 4)
    assert (found["shared"], found["wavefronts"]) == (4, 4)


@pytest.mark.parametrize(
    ("stride", "access", "fewest", "wavefronts"),
    [
        pytest.param(4, "st.shared.b32 [%r2], %r1", 1, 1, id="one after another"),
        pytest.param(8, "st.shared.b32 [%r2], %r1", 1, 2, id="2-way"),
        pytest.param(64, "st.shared.b32 [%r2], %r1", 1, 16, id="16-way"),
        pytest.param(128, "st.shared.b32 [%r2], %r1", 1, 32, id="32-way"),
        pytest.param(132, "st.shared.b32 [%r2], %r1", 1, 1, id="padded"),
        pytest.param(0, "ld.shared.b32 %r3, [%r2]", 1, 1, id="all the same"),
        pytest.param(2, "st.shared.b16 [%r2], %h1", 1, 1, id="halves of words"),
        pytest.param(128, "@%p1 st.shared.b32 [%r2], %r1", 1, 8, id="eight lanes"),
        pytest.param(8, "st.shared.v2.b32 [%r2], {%r1, %r1}", 2, 2, id="8 bytes"),
        pytest.param(16, "st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1}", 4, 4, id="16 bytes"),
        pytest.param(32, "st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1}", 4, 8, id="16 of 32 bytes"),
        pytest.param(
            128, "st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1}", 4, 32, id="16 of 128 bytes"
        ),
        pytest.param(
            16, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2]", 4, 4,
            id="matrices",
        ),
        pytest.param(
            128, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2]", 4, 32,
            id="matrices in columns",
        ),
    ],
)  # fmt: skip
def test_wavefronts_of_an_access(stride, access, fewest, wavefronts):
    found = counts(stride, access)
    assert (found["shared"], found["wavefronts"]) == (fewest, wavefronts)


def test_instructions_and_barriers():
    found, more = counts(4), counts(4, "bar.sync 0", "@%p1 mov.b32 %r3, %r1", "bar.sync 0")
    assert found["instructions"] == 7
    assert more["instructions"] == 10
    assert (found["barriers"], more["barriers"], more["programs"]) == (0, 2, 1)
