"""Timing on CUDA and on a CPU; a stand-in gives the times of a GPU."""

import json
import sys
import warnings
from pathlib import Path

import harness
import machine
import pytest
import report
import torch
from harness import Case, Variant
from machine import MAX_SETS, call_samples, graph_samples, sets_needed, summary
from parity import exactly
from stand_in_gpu import StandIn


@pytest.fixture
def gpu(monkeypatch):
    stand_in = StandIn()
    stand_in.install(monkeypatch)
    return stand_in


def median(samples):
    return summary(samples)["median"]


def test_a_warm_time_is_that_of_one_call(gpu):
    warm, cold, refused = graph_samples({"a": lambda x: gpu.spend(0.25)}, [(1,)])
    assert median(warm["a"]) == pytest.approx(0.25)
    assert (cold, refused) == ({}, {})


def test_a_cold_time_is_the_mean_over_all_sets(gpu):
    sets = [(0.1,), (0.2,), (0.6,)]
    warm, cold, _ = graph_samples({"a": gpu.spend}, sets)
    assert median(warm["a"]) == pytest.approx(0.1)
    assert median(cold["a"]) == pytest.approx(0.3)


def test_reading_the_scratch_memory_is_not_in_a_cold_time(gpu):
    class Scratch:
        def sum(self):
            gpu.spend(5.0)

    _, cold, _ = graph_samples({"a": gpu.spend}, [(0.1,), (0.3,)], Scratch())
    assert median(cold["a"]) == pytest.approx(0.2)


@pytest.mark.parametrize("where", [1.0, 2.0])
def test_what_cannot_be_captured_is_left_out_and_says_why(gpu, where):
    """With the first set of inputs or with a later one."""

    def refuses(x):
        if x == where:
            raise RuntimeError("not in a graph\nand more")

    warm, cold, refused = graph_samples({"a": gpu.spend, "b": refuses}, [(1.0,), (2.0,)])
    assert set(warm) == set(cold) == {"a"}
    assert refused == {"b": "not in a graph"}


pytestmark = pytest.mark.filterwarnings("ignore:called a synchronizing CUDA operation")


def reads_back(x):
    warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
    return -x


@pytest.fixture
def row(gpu, monkeypatch, tmp_path):
    """The row of one case, run for CUDA."""
    monkeypatch.setattr(machine, "ceilings", lambda *_: {"copy_gb_s": 1.0, "matmul_tflop_s": 1.0,
                                                         "matmul_dtype": "x"})  # fmt: skip
    path = tmp_path / "out.json"
    options = ["--device", "cuda", "--tiny", "--rounds", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_x.py", *options])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def timed(cost):
        def call(x):
            gpu.spend(cost)
            return -x

        return call

    variants = [
        Variant("plain", timed(0.4), "eager"),
        Variant("reads back", reads_back, "fair"),
        Variant("vtfast", timed(0.1), "vtfast"),
    ]
    case = Case("one", "8", torch.float32, lambda i: (torch.ones(25) + i,), variants,
                lambda inputs: exactly(-inputs[0]), nbytes=200)  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        harness.main({"x": lambda device, tiny: [case]}, "")
    assert ended.value.code == 0
    record = json.loads(path.read_text())
    assert record["runs"][0]["l2_bytes"] == 1000
    return record["rows"][0]


def test_a_case_on_cuda_has_call_warm_and_cold_times(row):
    for metric in ("call", "warm", "cold"):
        assert metric in row["ways"]["vtfast"]
    assert row["sets"] == 30  # of 100 bytes each, for a cache of 1000


def test_a_variant_that_waits_for_the_device_is_in_no_graph(row):
    way = row["ways"]["reads back"]
    assert (way["host_reads"], way["not_captured"]) == (1, "it waits for the device")
    assert "call" in way
    assert "warm" not in way


def test_graph_times_are_compared_with_graph_times(row):
    assert report.metric_of(row) == "cold"
    ratio = report.times_faster(row, report.BASELINES, "cold")
    assert ratio == pytest.approx(4.0)


def test_a_call_on_a_cpu_is_timed_by_processor_time(monkeypatch):
    """So that it does not take longer because others use the machine."""
    spent = [0.0]

    def call():
        spent[0] += 0.5

    monkeypatch.setattr("time.process_time", lambda: spent[0])
    assert call_samples({"a": call}, "cpu", rounds=4) == {"a": [500.0] * 3}  # slow: fewer rounds


def test_a_summary_is_the_median_with_its_20th_and_80th_percentile():
    assert summary(range(1, 12)) == {"median": 6, "p20": 3, "p80": 9}
    assert summary([5.0]) == {"median": 5.0, "p20": 5.0, "p80": 5.0}


@pytest.mark.parametrize(
    ("nbytes", "sets"), [(10, 31), (11, 29), (1000, 2), (1, MAX_SETS), (0, MAX_SETS)]
)
def test_rotated_inputs_are_three_times_the_cache(nbytes, sets):
    assert sets_needed(nbytes, 103) == sets


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        (str(Path("/", "tmp", "x.json")), "x.json"),
        (f"{machine.ROOT}/bench/out/x.json", "bench/out/x.json"),
        (f"--json={Path('/', 'srv', 'x.json')}", "--json=x.json"),
        ("bench/out/x.json", "bench/out/x.json"),
    ],
)
def test_a_command_names_no_path_of_one_machine(monkeypatch, given, noted):
    monkeypatch.setattr(sys, "argv", [f"{machine.ROOT}/bench/bench_scores.py", given])
    assert machine.header("cpu")["command"] == f"python bench/bench_scores.py {noted}"


def test_changed_sources_have_another_digest(tmp_path, monkeypatch):
    before = machine.sources()
    for folder in machine.MEASURED:
        (tmp_path / folder).symlink_to(machine.ROOT / folder)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.sources() == before
    (tmp_path / "bench").unlink()
    (tmp_path / "bench").mkdir()
    assert machine.sources() != before
