"""What must hold on a device: random picks as on a CPU, no waits, graphs that follow their inputs.

On a CPU, which has no graphs, the captured decoding step is called instead.
"""

import hashlib
import json
from collections.abc import Callable

import oracles
import pytest
import torch
from devices import DEVICE
from harness import host_reads
from op_calls import HEAD_SIZE, HEADS, KEY_HEADS, op_calls
from parity import exactly
from repository import ROOT
from shapes import dtype_for, normal

import vtfast
from vtfast.kernels._packed_attention import RaggedStep, eager_step
from vtfast.ops import Ragged, random_select
from vtfast.runtime.packed_kv_cache import ROOM, PackedKVLayer, PackedKVLayout

PICKS = ROOT / "tests" / "data" / "random_select.json"
SHOWN = 64  # picks of a case that are written out; the digest is of all

# lengths, keep, seed, image hashes (None: by position), stream
RANDOM_CASES = [
    ([576], [72], 0, None, 0),
    ([576] * 3, [58, 288, 576], 1, None, 20),
    ([3, 0, 63, 1, 577], [2, 0, 31, 1, 58], -1, [5, 6, 7, 8, 9], 2**31 - 1),
    ([4096, 4097], [512, 4096], 2**63 - 1, [-1, -(2**63)], 3),
    ([16384], [1638], -(2**63), [2**63 - 1], 21),
    ([31, 32, 33, 1023, 1024, 1025], [8, 8, 8, 500, 1, 500], 123456789, None, 1),
]
each_case = pytest.mark.parametrize("number", range(len(RANDOM_CASES)))
each_call = pytest.mark.parametrize("name", op_calls("cpu"))


def written(case: tuple, index: list[int]) -> dict:
    digest = hashlib.sha256(json.dumps(index).encode()).hexdigest()
    return {"lengths": case[0], "keep": case[1], "first": index[:SHOWN], "sha256": digest}


@each_case
def test_random_picks_are_those_of_a_cpu(number: int) -> None:
    lengths, keep, seed, hashes, stream = case = RANDOM_CASES[number]
    hashes = None if hashes is None else torch.tensor(hashes, device=DEVICE)
    segments = Ragged.from_lengths(lengths, DEVICE)
    index = random_select(segments, keep, seed=seed, image_hash=hashes, stream=stream)
    assert written(case, index.tolist()) == json.loads(PICKS.read_text())[number]


def expected(case: tuple) -> dict:
    lengths, keep, seed, hashes, stream = case
    hashes = range(len(lengths)) if hashes is None else hashes
    return written(case, oracles.random_select(lengths, keep, seed, hashes, stream))


@each_case
def test_the_written_picks_are_what_python_integers_give(number: int) -> None:
    assert expected(RANDOM_CASES[number]) == json.loads(PICKS.read_text())[number]


@pytest.fixture(scope="module")
def calls() -> dict:
    return op_calls(DEVICE)


@each_call
def test_no_op_reads_the_device_back(calls: dict, name: str) -> None:
    op, tensors = calls[name]
    op(*tensors)  # compiled, and everything that is built once
    assert host_reads(lambda: op(*tensors), DEVICE) == 0


@each_call
@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU has no graphs")
def test_a_captured_op_follows_its_inputs_when_replayed(name: str) -> None:
    """On other inputs in the same memory it gives the same bits as a plain call."""
    op, tensors = op_calls(DEVICE)[name]
    op(*tensors)
    replay, captured = graph_of(lambda: op(*tensors))
    for x in tensors:
        x.copy_(x.flip(0) if x.is_floating_point() else x + 5)
    plain = op(*tensors)
    replay()
    torch.cuda.synchronize()
    assert exactly(plain)(captured) == ""


def graph_of(call: Callable[[], object]) -> tuple[Callable[[], object], object]:
    """A graph of this call, not run yet: the function that replays it, and its output."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return graph.replay, answer


def test_a_captured_decoding_step_is_every_next_step() -> None:
    """Cache update and attention of one packed step: while room remains, each replay is the next
    step, bit for bit that of a cache beside it that is called step by step."""
    (plain, new), (step, replayed_new) = (packed_cache() for _ in range(2))
    plain(), step()
    replay, answer = graph_of(step) if DEVICE == "cuda" else (step, None)
    for number in range(2, ROOM):
        for x, same in zip(new, replayed_new, strict=True):
            same.copy_(x.mul_(-1).roll(1, 0))
            x.copy_(same)
        found, after = plain(), replay()
        if number in (2, 3, ROOM - 1):
            assert exactly(found)(answer if DEVICE == "cuda" else after) == "", number


def packed_cache() -> tuple[Callable[[], object], list[torch.Tensor]]:
    """A layer's cache after a prefill: its next step, and the query, key and value it reads."""
    lengths = [70, 3, 129]
    rows = PackedKVLayout([0] * len(lengths), torch.device(DEVICE))
    layer = PackedKVLayer(rows)

    def fresh(seed: int, *shape: int) -> torch.Tensor:
        return normal(seed, *shape, HEAD_SIZE, device=DEVICE, dtype=dtype_for(DEVICE))

    def step() -> torch.Tensor:
        rows.extend([1] * len(lengths), [layer])
        attention = eager_step(rows.lengths, rows.starts, layer.keys)
        if DEVICE == "cuda":
            attention = RaggedStep(rows.decoder())
        return attention.attend(new[0], *layer.update(*new[1:]), None)

    rows.extend(lengths, [layer])
    layer.update(*(fresh(seed, 1, KEY_HEADS, sum(lengths)) for seed in (1, 2)))
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    new = [fresh(seed, len(lengths), n, 1) for seed, n in enumerate(heads)]
    return step, new


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_toy_model_says_the_same_as_on_a_cpu_and_waits_once_more_at_most(
    name: str, keep: float
) -> None:
    """Greedy tokens in fp32. Where the device is the CPU, packed is compared with padded."""
    said, stock, patched = answers(name, keep, DEVICE, "packed")
    assert said == answers(name, keep, "cpu", "padded")[0]
    assert patched <= stock + 1


def answers(name: str, keep: float, device: str, path: str) -> tuple[list, int, int]:
    """Tokens said with the patch; and how often generating waits without it and with it."""
    model, processor = vtfast.toy.load(name)
    model.to(device)
    asked = [vtfast.toy.scenes(1, 3, task)[:2] for task in ("digit", "code", "background")]
    text = [vtfast.toy.prompt(processor, questions[0]) for _, questions in asked]
    pictures = [pictures[0] for pictures, _ in asked]
    inputs = processor(text=text, images=pictures, padding=True, return_tensors="pt").to(device)

    def generate() -> torch.Tensor:
        return model.generate(**inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6)

    generate()
    before = host_reads(generate, device)
    with vtfast.patch(model, keep=keep, path=path):
        return generate().tolist(), before, host_reads(generate, device)
