"""Three ways to time a call, all in milliseconds per call.

- call: many plain calls. On a GPU by the host's clock, waiting for the device at both ends only:
  what a user of the eager call gets, at our sizes mostly the cost of launching. On a CPU by the
  processor time of this process, so that waiting for its turn on a busy machine does not count;
  with one thread that is the time the call takes on a quiet one, but for caches and memory.
- graph, warm: replays of a CUDA graph of several calls on the same inputs, between two events.
  Launch gaps are gone and inputs that fit the L2 cache come from it.
- graph, cold: the same over several sets of inputs in turn, so many that they do not fit the L2
  cache three times over. Where 64 small sets still do, a read of that much scratch memory precedes
  them in the graph and its own time is subtracted. Outputs may be reused, so writes may hit.

Ways are timed in alternation, so that a slow spell of the machine hits them all alike.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Calls = dict[str, Callable[..., object]]
Samples = dict[str, list[float]]

MAX_SETS = 64
_LEAST_ROUNDS, _ENOUGH_MS = 3, 1e3
_GRAPH_CALLS = 10  # in a warm graph: a replay itself costs some microseconds
_GRAPH_MS = 2.0  # of replays between two events
_GRAPH_ROUNDS = 15


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    if len(samples) == 1:
        return dict.fromkeys(("median", "p20", "p80"), samples[0])
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return {"median": statistics.median(samples), "p20": deciles[1], "p80": deciles[7]}


def call_samples(calls: Calls, device: str, rounds: int = 9, seconds: float = 0.02) -> Samples:
    """One sample per call and round, each the mean over about `seconds`; of slow calls fewer."""
    clock = _host_clock if device == "cuda" else time.process_time
    repeats = {name: _repeats(call, clock, seconds) for name, call in calls.items()}
    samples: Samples = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            if number < _LEAST_ROUNDS or sum(samples[name]) < _ENOUGH_MS:
                samples[name].append(_timed(call, clock, repeats[name]))
    return samples


def _host_clock() -> float:
    """Seconds, when the device has done all it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _repeats(call: Callable[[], object], clock: Callable[[], float], seconds: float) -> int:
    """How often to call so that it takes about `seconds`; warms up on the way."""
    call()
    repeats = 1
    while (ms := _timed(call, clock, repeats)) * repeats < 250 * seconds:
        repeats *= 2
    return max(1, round(1e3 * seconds / ms))


def _timed(call: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) * 1e3 / repeats


def sets_needed(nbytes: int, cache: int) -> int:
    """Sets of inputs of so many bytes that are three times the cache, at most `MAX_SETS`."""
    return min(MAX_SETS, max(2, -(-3 * cache // max(1, nbytes))))


def graph_samples(
    calls: Calls, sets: Sequence[tuple], scratch: torch.Tensor | None = None
) -> tuple[Samples, Samples, dict[str, str]]:
    """Warm and cold samples of calls that take one set of inputs; cold ones need two sets or more.

    Third, for each call that cannot be captured, why not; it is in neither of the two.
    """
    flush = [] if scratch is None else [lambda: scratch.sum()]
    warm, cold, refused = {}, {}, {}
    for name, call in calls.items():
        try:
            warm[name] = _captured([lambda call=call: call(*sets[0])] * _GRAPH_CALLS)
            each = [lambda call=call, inputs=inputs: call(*inputs) for inputs in sets]
            cold[name] = _captured(flush + each)
        except RuntimeError as error:
            torch.cuda.synchronize()  # raises where more is broken than the capture
            warm.pop(name, None)
            refused[name] = str(error).strip().split("\n")[0]
    if len(sets) < 2:
        cold = {}
    wasted = statistics.median(_replayed({"": _captured(flush)})[""]) if flush and cold else 0.0
    warm_ms = {n: [ms / _GRAPH_CALLS for ms in s] for n, s in _replayed(warm).items()}
    cold_ms = {n: [(ms - wasted) / len(sets) for ms in s] for n, s in _replayed(cold).items()}
    return warm_ms, cold_ms, refused


def _captured(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """A graph of these calls. Raises RuntimeError where one of them cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its stream behind as the current one; the outer context does not.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _replayed(graphs: dict[str, torch.cuda.CUDAGraph]) -> Samples:
    """Milliseconds of one replay of each, in alternation."""
    repeats = {}
    for name, graph in graphs.items():
        graph.replay()
        repeats[name] = max(1, min(200, round(_GRAPH_MS / max(1e-3, _events(graph, 3)))))
    samples: Samples = {name: [] for name in graphs}
    for _ in range(_GRAPH_ROUNDS):
        for name, graph in graphs.items():
            samples[name].append(_events(graph, repeats[name]))
    return samples


def _events(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats
