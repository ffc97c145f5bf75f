"""A stand-in for `torch.cuda`: the CUDA code of benches runs on a CPU; figures mean nothing.

A graph is the list of calls made while it was captured; an event is a moment on a clock that only
calls move forward. Calls that PyTorch would refuse are not refused.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch


class StandIn:
    """`install` puts it in the place of `torch.cuda`; `cost` milliseconds are what a call takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.captured: list[float] | None = None

    def spend(self, cost: float) -> None:
        """For a call under test: take this long, in the graph if one is being captured."""
        if self.captured is None:
            self.now += cost
        else:
            self.captured.append(cost)

    def install(self, monkeypatch) -> None:
        machine = self

        class Graph:
            def replay(self):
                machine.now += sum(self.calls)

        class Event:
            def __init__(self, enable_timing):
                self.at = None

            def record(self):
                self.at = machine.now

            def synchronize(self):
                pass

            def elapsed_time(self, later):
                return later.at - self.at

        @contextmanager
        def graph(target):
            machine.captured = target.calls = []
            try:
                yield
            finally:
                machine.captured = None

        def do_bench(call, *durations, return_mode):
            start = machine.now
            call()
            return machine.now - start

        monkeypatch.setattr("triton.testing.do_bench", do_bench)
        stream = SimpleNamespace(wait_stream=lambda other: None)
        properties = SimpleNamespace(
            L2_cache_size=1000, multi_processor_count=1, total_memory=2**20, name="stand-in"
        )
        for name, value in {
            "CUDAGraph": Graph,
            "Event": Event,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "get_device_name": lambda: "stand-in",
            "get_device_properties": lambda index: properties,
            "graph": graph,
            "set_sync_debug_mode": lambda mode: None,
            "stream": lambda stream: nullcontext(),
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
