"""What the kernels do at the shapes of 7B models is on record, and moves no more than it must."""

import re
import sys

import ptx_counts
import ptx_counts_table as counts
import pytest
import torch
from devices import ARCH
from repository import ROOT

from vtfast import ops

SOURCES = [path.read_text() for path in (ROOT / "kernels").glob("*.py")]
KERNELS = {k for text in SOURCES for k in re.findall(r"^def (_\w+_kernel)\(", text, re.M)}
# A launch that issues for 1 µs, moves what DRAM moves in 2, and so on in the order of the floors.
LAUNCH = {
    "programs": 264, "warps": 4, "registers": 128, "shared_bytes": 0, "ptx": 100, "sass": 200,
    "instructions": 132 * 4 * 1755 // 2, "launch_sectors": 300_000,
    "program_sectors": 3 * 3942 * 1755 / 32, "wavefronts": 4 * 132 * 1755,
    "flops": 5 * 132 * 4096 * 1755,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return counts.kept()["rows"]


def test_the_docs_show_the_record():
    """If not, run `make ptx-counts`."""
    assert counts.shown() == counts.block(counts.kept())


def test_every_kernel_is_counted(rows):
    assert {row["kernel"] for row in rows} == KERNELS


def test_nothing_moves_more_than_it_must_without_a_reason(rows):
    above = {
        (row["kernel"], part, row["shape"], round(ratio, 2))
        for row in rows
        for part, ratio in counts.ratios(row).items()
        if ratio > counts.MOST and (row["kernel"], part) not in counts.EXCUSED
    }
    assert above == set()


def test_every_reason_is_needed(rows):
    above = {
        (row["kernel"], part)
        for row in rows
        for part, ratio in counts.ratios(row).items()
        if ratio > counts.MOST
    }
    assert counts.EXCUSED.keys() - above == set()


def test_floors_are_those_worked_out_by_hand():
    found = counts.floors(LAUNCH)
    assert found == pytest.approx({"issue": 1, "DRAM": 2, "L2": 3, "shared": 4, "tensor": 5})
    alone = counts.floors(LAUNCH | {"programs": 1, "warps": 1})
    expected = {"issue": 528, "DRAM": 2, "L2": 3, "shared": 132 * 4, "tensor": 132 * 5}
    assert alone == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, 4, id="registers"),
        pytest.param({"registers": 129}, 3, id="registers come in units of 8"),
        pytest.param({"registers": 16}, 16, id="warps"),
        pytest.param({"registers": 16, "warps": 1}, 32, id="programs"),
        pytest.param({"shared_bytes": 113 * 1024}, 2, id="shared memory"),
        pytest.param({"shared_bytes": 113 * 1024 + 1}, 1, id="one byte more"),
    ],
)
def test_programs_that_fit_on_a_multiprocessor(changed, expected):
    assert counts.resident(LAUNCH | changed) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_kernel_has_bank_conflicts(dtype, monkeypatch):
    """The sum of `_merge_splits_kernel` once took 16 wavefronts for one; nothing had shown it."""
    diversity = sys.modules[ops.diversity_select.__module__]
    monkeypatch.setattr(diversity, "_LONG", diversity._LONG // 16)
    unused = {"_nearest_others_kernel"} if dtype == torch.float32 else set()
    seen, conflicts = set(), {}
    for op, shape, call in ptx_counts.cases(16, dtype):
        for ran in ptx_counts.counted(call):
            seen.add(ran.program.name)
            ratio = counts.ratios(ran.counts).get("shared", 1.0)
            if ratio > counts.MOST:
                conflicts[op, shape, ran.program.name] = ratio
    assert seen == KERNELS - unused
    assert conflicts == {}


def test_the_record_is_of_the_kernels_as_they_are(rows):
    """If not, run `make ptx-counts`. Of each kernel the launch with the fewest instructions."""
    if counts.kept()["arch"] != ARCH:
        pytest.skip("the record is of another GPU")
    fewest = {}
    for row in sorted(rows, key=lambda row: -row["instructions"]):
        fewest[row["kernel"]] = row["op"], row["shape"]
    for op, shape, call in ptx_counts.cases():
        if (op, shape) not in fewest.values():
            continue
        known = [row for row in rows if (row["op"], row["shape"]) == (op, shape)]
        for row, ran in zip(known, ptx_counts.counted(call), strict=True):
            found = {"kernel": ran.program.name, "flops": ptx_counts.flops(ran), **ran.counts}
            assert found == {name: row[name] for name in found}
