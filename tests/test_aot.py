"""Every kernel compiles for the GPUs we ship for, without spilling, and uses what makes it fast.

Says nothing about results or times: no GPU is needed, and none is used.
"""

import aot
import pytest

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
NVIDIA = [arch for arch in aot.ARCHS if arch.startswith("sm_")]


@pytest.fixture(scope="module")
def table():
    pytest.importorskip("triton", reason="there is no triton outside Linux")
    return aot.in_a_process_of_its_own()


def of(table, arch, name=""):
    rows = [row for row in table if row["arch"] == arch and row["kernel"].startswith(name)]
    assert rows
    return rows


@pytest.mark.parametrize("arch", NVIDIA)
def test_nothing_spills_out_of_the_registers(table, arch):
    spilling = [r for r in of(table, arch) if r["stack"] or r["local"] or r["spill"]]
    assert spilling == []


@pytest.mark.parametrize("arch", aot.ARCHS)
def test_shared_memory_fits(table, arch):
    assert [r for r in of(table, arch) if r["shared"] > SHARED_LIMIT[arch]] == []


@pytest.mark.parametrize("arch", NVIDIA)
def test_gathered_rows_move_16_bytes_at_a_time(table, arch):
    """A tile of 4 x 1024 words is 8 loads and stores of 16 bytes for each of 128 threads."""
    for row in of(table, arch, "gather"):
        assert (row["load_128"], row["store_128"]) == (8, 8), row


@pytest.mark.parametrize("arch", NVIDIA)
def test_selections_gather_16_bytes_at_a_time(table, arch):
    """A block of 32 picks is as many loads a thread as above, whatever the tile."""
    fused = [row for row in of(table, arch) if "+ gather" in row["kernel"]]
    assert len(fused) == 6
    assert [row for row in fused if (row["load_128"], row["store_128"]) != (8, 8)] == []


@pytest.mark.parametrize("arch", NVIDIA)
def test_the_greedy_loop_reads_16_bytes_at_a_time(table, arch):
    """A line of 1024 to 4096 distances is 2 loads of 16 bytes a thread, one of 16384 is 4."""
    wide = [row["load_128"] for row in of(table, arch, "diversity greedy")]
    assert wide == [2, 2, 4]


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "hmma"), ("sm_90", "hgmma"), ("sm_100", "tcgen05")]
)
def test_distances_are_made_by_tensor_cores(table, arch, instruction):
    rows = of(table, arch, "diversity distances")
    assert [row["kernel"] for row in rows if not row[instruction]] == []
    assert len(rows) == 3
