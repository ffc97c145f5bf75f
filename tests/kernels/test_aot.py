"""Every kernel compiles for the GPUs we ship for, without spilling, and uses what makes it fast.

Says nothing about results or times: no GPU is needed, and none is used. One case per kernel is
compiled here, with the older Triton for one GPU only; what `make aot` recorded of all others must
be of the settings that the code has now.
"""

import re

import aot
import aot_table
import pytest
from repository import ROOT

# 8.6, 8.9 and 12.x are launched with the settings of sm_80, and have less shared memory.
SMALLEST = 99 * 1024
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
MOST = 150


def name(row):
    return row["kernel"], row["case"], row["arch"], row["triton"]


@pytest.fixture(scope="module")
def listed():
    """The settings of all kernels on all GPUs by name, with the figures of those compiled here."""
    pytest.importorskip("triton", reason="there is no triton outside Linux")
    return {name(row): row for row in aot.in_processes_of_their_own("gate")["rows"]}


@pytest.fixture(scope="module")
def compiled(listed):
    return {key: row for key, row in listed.items() if "found" in row}


@pytest.fixture(scope="module")
def kept():
    return {name(row): row for row in aot_table.kept()["rows"]}


@pytest.fixture(scope="module")
def of(kept, compiled):
    """The rows of one GPU, or one kernel there: the record, overridden by what is compiled here."""

    def choose(arch, kernel=""):
        rows = (row for row in (kept | compiled).values() if row["arch"] == arch)
        rows = [row["found"] | row for row in rows if row["kernel"].startswith(kernel)]
        assert rows
        return rows

    return choose


def names(rows):
    return [name(row) for row in rows]


def test_every_kernel_is_compiled(compiled, kept):
    """Here with each Triton, and for every GPU in the record."""
    sources = (path.read_text() for path in (ROOT / "kernels").glob("*.py"))
    kernels = {k for text in sources for k in re.findall(r"^def (_\w+_kernel)\(", text, re.M)}
    here = {(kernel, arch, version) for kernel, _, arch, version in compiled}
    assert here == {(k, a, v) for k in kernels for v in aot.VERSIONS for a in aot.GATED[v]}
    done = {(kernel, arch, version) for kernel, _, arch, version in kept}
    assert done == {(k, a, v) for k in kernels for a in aot.ARCHS for v in aot.VERSIONS}
    assert len(compiled) <= MOST


def test_every_setting_is_recorded(listed, kept):
    """If not, run `make aot`: a setting is new, gone or changed."""
    settings = {key: row["setting"] for key, row in listed.items()}
    known = {key: row["setting"] for key, row in kept.items()}
    assert settings.keys() - known.keys() == known.keys() - settings.keys() == set()
    assert [key for key in settings if settings[key] != known[key]] == []


def test_compiled_figures_are_the_recorded_ones(compiled, kept):
    """If not, run `make aot`: a kernel has changed since."""
    assert [key for key in compiled if compiled[key]["found"] != kept[key]["found"]] == []


def test_the_docs_show_the_record():
    assert aot_table.shown() == aot_table.table(aot_table.kept())


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_nothing_spills_out_of_the_registers(of, arch):
    assert names(row for row in of(arch) if row["stack"] or row["local"] or row["spills"]) == []


@pytest.mark.parametrize("arch", aot.ARCHS)
def test_a_program_fits_its_processor(of, arch):
    """Its shared memory, and its threads: at most 1024 on every GPU."""
    lanes = 32 if arch in aot.NVIDIA else 64
    assert names(row for row in of(arch) if row["shared"] > SHARED_LIMIT[arch]) == []
    assert names(row for row in of(arch) if row["setting"]["warps"] * lanes > 1024) == []


def test_a_program_fits_smaller_gpus_or_is_not_launched_there(of):
    """`why_unsupported_length` refuses those that store through shared memory, 8 bytes a row."""
    for row in of("sm_80"):
        if row["shared"] > SMALLEST:
            constants = row["setting"]["constants"]
            picked_from = constants["ROWS"] * constants["COLUMNS"]
            assert row["kernel"] in ("_topk_select_kernel", "_finish_kernel"), row
            assert (row["triton"], row["shared"]) == ("3.6.0", 8 * picked_from), row


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_gathered_rows_move_16_bytes_at_a_time(of, arch):
    """A tile of 4 x 1024 words is 8 loads and stores of 16 bytes for each of 128 threads."""
    for row in of(arch, "_gather_rows"):
        if row["case"].startswith("hidden states"):
            assert (row["loads_128"], row["stores_128"]) == (8, 8), row


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_pixels_are_read_16_bytes_at_a_time(of, arch):
    """Where patches, or pictures, are multiples of that: 4,096 values for 128 threads."""
    for row in of(arch, "_image_hash"):
        unit = row["setting"]["constants"]["UNIT"]
        assert row["loads_128"] == (4096 // 128 // unit if unit > 1 else 0), row


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_the_greedy_loop_reads_16_bytes_at_a_time(of, arch):
    """A line of the matrix in loads of 4 distances by all threads; at least one for each."""
    for row in of(arch, "_greedy") + of(arch, "_coverage"):
        constants, threads = row["setting"]["constants"], 32 * row["setting"]["warps"]
        loads = constants["ROWS"] * constants["COLUMNS"] // 4 // threads
        assert row["loads_128"] == loads > 0, row


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "hmma"), ("sm_90", "hgmma"), ("sm_100", "tcgen05")]
)
def test_distances_are_computed_by_tensor_cores(of, arch, instruction):
    assert names(row for row in of(arch, "_distances") if not row[instruction]) == []


@pytest.mark.parametrize(
    ("arch", "instruction"), [("sm_80", "hmma"), ("sm_90", "hgmma"), ("sm_100", "tcgen05")]
)
def test_attention_is_computed_by_tensor_cores(of, arch, instruction):
    rows = of(arch, "_attention")
    short = [row for row in rows if row["setting"]["types"]["q_ptr"] != "*fp32"]
    assert names(row for row in short if not row[instruction]) == []
    # fp32 in three products of tf32, and decoding with its few rows, take the older instructions.
    others = [*of(arch, "_split"), *(row for row in rows if row not in short)]
    assert names(row for row in others if not row["hmma"]) == []


@pytest.mark.parametrize("arch", aot.NVIDIA)
def test_attention_does_not_wait_for_keys_and_values(of, arch):
    """They are copied to shared memory while others are computed with, also through an index."""
    rows = of(arch, "_attention") + of(arch, "_split")
    assert names(row for row in rows if not row["async_copies"]) == []
    assert any("index_ptr" in row["setting"]["types"] for row in rows)
