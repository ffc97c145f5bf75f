"""Timing on CUDA: what is done with the moments that a GPU gives. A stand-in gives them here."""

import json
import sys
import warnings

import harness
import machine
import pytest
import torch
from harness import Case, Way
from parity import exactly
from stand_in_gpu import StandIn
from timing import graph_samples, summary


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

    ways = [
        Way("plain", timed(0.4), "eager"),
        Way("reads back", reads_back, "fair"),
        Way("vtfast", timed(0.1), "vtfast"),
    ]
    case = Case("one", "8", torch.float32, lambda i: (torch.ones(25) + i,), ways,
                lambda inputs: exactly(-inputs[0]), nbytes=200)  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        harness.main("x", lambda device, tiny: [case])
    assert ended.value.code == 0
    record = json.loads(path.read_text())
    assert record["runs"][0]["l2_bytes"] == 1000
    return record["rows"][0]


def test_a_case_on_cuda_has_call_warm_and_cold_times(row):
    for metric in ("call", "warm", "cold"):
        assert metric in row["ways"]["vtfast"]
    assert row["sets"] == 30  # of 100 bytes each, for a cache of 1000


def test_a_way_that_waits_for_the_device_is_in_no_graph(row):
    way = row["ways"]["reads back"]
    assert (way["host_reads"], way["not_captured"]) == (1, "it waits for the device")
    assert "call" in way
    assert "warm" not in way


def test_graph_times_are_compared_with_graph_times(row):
    assert harness.figures.metric_of(row) == "cold"
    ratio = harness.figures.times_faster(row, harness.figures.BASELINES, "cold")
    assert ratio == pytest.approx(4.0)
