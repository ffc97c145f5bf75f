"""Every kernel compiles for the GPUs we ship for, without spilling, and uses what makes it fast.

Says nothing about results or times: no GPU is needed, and none is used.
"""

import re

import aot
import pytest
from repository import ROOT

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
LANES = {"gfx942": 64}  # of a warp, 32 elsewhere
MOST = 120  # kernels x GPUs x versions compiled in every run of the tests


@pytest.fixture(scope="module")
def listed():
    """The settings of all kernels on all GPUs, and what came of those compiled here."""
    pytest.importorskip("triton", reason="there is no triton outside Linux")
    return aot.in_processes_of_their_own("gate")


@pytest.fixture(scope="module")
def table(listed):
    return [row for row in listed["rows"] if "registers" in row]


def of(table, arch, kernel=""):
    """The rows of one GPU, or of one kernel there."""
    rows = [row for row in table if row["arch"] == arch and row["kernel"].startswith(kernel)]
    assert rows
    return rows


def test_every_kernel_is_compiled_everywhere(table):
    sources = (path.read_text() for path in (ROOT / "kernels").glob("*.py"))
    kernels = {name for text in sources for name in re.findall(r"^def (_\w+_kernel)\(", text, re.M)}
    done = {(row["kernel"], row["arch"], row["triton"]) for row in table}
    assert done == {(k, a, v) for k in kernels for a in aot.ARCHS for v in aot.VERSIONS}
    assert len(table) <= MOST


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_nothing_spills_out_of_the_registers(table, arch):
    assert [r for r in of(table, arch) if r["stack"] or r["local"] or r["spills"]] == []


@pytest.mark.parametrize("arch", aot.ARCHS)
def test_shared_memory_fits(table, arch):
    assert [r for r in of(table, arch) if r["shared"] > SHARED_LIMIT[arch]] == []


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_gathered_rows_move_16_bytes_at_a_time(table, arch):
    """A tile of 4 x 1024 words is 8 loads and stores of 16 bytes for each of 128 threads."""
    for row in of(table, arch, "_gather_rows"):
        assert (row["loads_128"], row["stores_128"]) == (8, 8), row


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_selections_gather_16_bytes_at_a_time(table, arch):
    """A block of 32 picks is as many loads a thread as above, whatever the tile."""
    fused = [
        row for kernel in ("_topk_gather", "_random_gather") for row in of(table, arch, kernel)
    ]
    assert [row for row in fused if (row["loads_128"], row["stores_128"]) != (8, 8)] == []


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_the_greedy_loop_reads_16_bytes_at_a_time(table, arch):
    """A line of 16384 distances is 4096 loads of 16 bytes, shared by all threads."""
    for row in of(table, arch, "_greedy"):
        assert row["loads_128"] == row["constants"]["ROWS"] * 32 // 4 // (32 * row["warps"]), row


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "hmma"), ("sm_90", "hgmma"), ("sm_100", "tcgen05")]
)
def test_distances_are_made_by_tensor_cores(table, arch, instruction):
    assert [row for row in of(table, arch, "_distances") if not row[instruction]] == []


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "hmma"), ("sm_90", "hgmma"), ("sm_100", "tcgen05")]
)
def test_attention_is_made_by_tensor_cores(table, arch, instruction):
    assert [row for row in of(table, arch, "_attention") if not row[instruction]] == []
    assert [row for row in of(table, arch, "_split") if not row["hmma"]] == []


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_attention_does_not_wait_for_keys_and_values(table, arch):
    """They are copied to shared memory while others are computed with, also through an index."""
    rows = of(table, arch, "_attention") + of(table, arch, "_split")
    assert [row for row in rows if not row["async_copies"]] == []
    assert any("index_ptr" in row["types"] for row in rows)
