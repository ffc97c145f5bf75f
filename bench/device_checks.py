"""Checks of a device that need nothing but torch, triton and the models bundled here.

    python bench/device_checks.py fixtures    # random picks are those written on a CPU, bit for bit
    python bench/device_checks.py reads       # no op waits for the device
    python bench/device_checks.py graphs      # a captured op follows its inputs when replayed
    python bench/device_checks.py decoding    # a captured step of a packed cache is every next step
    python bench/device_checks.py models      # toy models say the same on the CPU and here, fp32
    python bench/device_checks.py calls       # every op once, for a memory checker to watch

On a machine without a GPU they run on the CPU as far as that means anything, and say where not.
`fixtures --write` writes the fixtures anew, with the eager twin on the CPU.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from harness import host_reads
from op_calls import HEAD_SIZE, HEADS, KEY_HEADS, op_calls
from parity import exactly
from shapes import dtype_for, normal

from vtfast.ops import Ragged, ragged_decode, random_select
from vtfast.runtime.packed_kv_cache import ROOM, PackedKVLayer, PackedKVLayout

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures" / "random_select.json"
SHOWN = 64  # picks of a case that are written out; of more, their digest

# lengths, keep, seed, keys (None: by position), stream
RANDOM_CASES = [
    ([576], [72], 0, None, 0),
    ([576] * 3, [58, 288, 576], 1, None, 20),
    ([3, 0, 63, 1, 577], [2, 0, 31, 1, 58], -1, [5, 6, 7, 8, 9], 2**31 - 1),
    ([4096, 4097], [512, 4096], 2**63 - 1, [-1, -(2**63)], 3),
    ([16384], [1638], -(2**63), [2**63 - 1], 21),
    ([31, 32, 33, 1023, 1024, 1025], [8, 8, 8, 500, 1, 500], 123456789, None, 1),
]
Verdicts = Iterator[tuple[str, str]]  # what was checked, and what is wrong with it


def fixtures(device: str) -> Verdicts:
    """Random picks are those of the CPU."""
    for case, written in zip(RANDOM_CASES, json.loads(FIXTURES.read_text()), strict=True):
        found = _picks(case, device, "auto")
        same = found == written
        yield f"lengths {case[0]}, seed {case[2]}", "" if same else "other picks than on the CPU"


def _picks(case: tuple, device: str, impl: str) -> dict:
    lengths, keep, seed, keys, stream = case
    names = None if keys is None else torch.tensor(keys, device=device)
    segments = Ragged.from_lengths(lengths, device)
    index = random_select(segments, keep, seed=seed, image_hash=names, stream=stream, impl=impl)
    rows = index.tolist()
    return {"lengths": lengths, "keep": keep, "first": rows[:SHOWN], "sha256": digest(rows)}


def digest(rows: list[int]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def write_fixtures() -> None:
    cases = [_picks(case, "cpu", "eager") for case in RANDOM_CASES]
    lines = ",\n ".join(json.dumps(case) for case in cases)
    FIXTURES.write_text(f"[{lines}]\n")


def reads(device: str) -> Verdicts:
    """No op reads the device back: on CUDA waiting is made an error, on a CPU it is counted."""
    for name, (op, tensors) in op_calls(device).items():
        op(*tensors)  # compiled, and everything that is built once
        yield name, _waits(lambda op=op, tensors=tensors: op(*tensors), device)


def _waits(call: Callable[[], object], device: str) -> str:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            return str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return ""
    read = _read_on_cpu(call)
    return f"reads back: {read}" if read else ""


def _read_on_cpu(call: Callable[[], object]) -> list[str]:
    from host_reads import HostReads  # in tests/, which parity put on the path

    with HostReads() as found:
        call()
    return found.calls


def graphs(device: str) -> Verdicts:
    """Captured once, replayed on other inputs in the same memory: the same bits as a plain call."""
    if device != "cuda":
        yield "not run: a CPU has no graphs", ""
        return
    for name, (op, tensors) in op_calls(device).items():
        op(*tensors)
        replay, captured = _captured(lambda op=op, tensors=tensors: op(*tensors))
        for x in tensors:
            x.copy_(x.flip(0) if x.is_floating_point() else x + 5)
        expected = op(*tensors)
        replay()
        torch.cuda.synchronize()
        yield name, exactly(expected)(captured)


def _captured(call: Callable[[], object]) -> tuple[Callable[[], object], object]:
    """A graph of this call, which is not run: what replays it, and where its answer will be."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return graph.replay, answer


def decoding(device: str) -> Verdicts:
    """Cache update and attention of one packed decoding step, captured once: while room remains,
    each replay is the next step, bit for bit that of a cache beside it that is called step by step.
    A CPU has no graphs: there both are called."""
    (plain, new), (step, replayed_new) = (_packed_cache(device) for _ in range(2))
    plain(), step()
    replay, answer = _captured(step) if device == "cuda" else (step, None)
    for number in range(2, ROOM):
        for x, same in zip(new, replayed_new, strict=True):
            same.copy_(x.mul_(-1).roll(1, 0))
            x.copy_(same)
        expected, found = plain(), replay()
        found = answer if device == "cuda" else found
        if number in (2, 3, ROOM - 1):
            yield f"step {number} of {ROOM}", exactly(expected)(found)


def _packed_cache(device: str) -> tuple[Callable[[], object], list[torch.Tensor]]:
    """A layer's cache after a prefill: its next step, and query, key and value of the new rows."""
    lengths, kernels = [70, 3, 129], device == "cuda"
    rows = PackedKVLayout([0] * len(lengths), torch.device(device))
    layer = PackedKVLayer(rows)

    def fresh(seed: int, *shape: int) -> torch.Tensor:
        return normal(seed, *shape, HEAD_SIZE, device=device, dtype=dtype_for(device))

    def step() -> torch.Tensor:
        metadata = rows.extend([1] * len(lengths), [layer], step=True, kernels=kernels)
        assert metadata.decode is not None
        buffers = layer.update(*new[1:])
        return ragged_decode(new[0][:, :, 0], *buffers, **vars(metadata.decode))

    rows.extend(lengths, [layer])
    layer.update(*(fresh(seed, 1, KEY_HEADS, sum(lengths)) for seed in (1, 2)))
    new = [
        fresh(n, len(lengths), heads, 1) for n, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS))
    ]
    return step, new


def models(device: str) -> Verdicts:
    """Greedy tokens of the toy models, full and pruned, equal those on the CPU, in fp32.

    Where the device is the CPU, the packed layout is compared with the padded one.
    """
    from transformers.utils.logging import disable_progress_bar

    import vtfast

    disable_progress_bar()
    torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another
    for name in ("llava", "qwen"):
        for keep in (1.0, 0.5):
            here, there = (
                _answers(vtfast, name, keep, *where)
                for where in ((device, "packed"), ("cpu", "padded"))
            )
            wrong = "" if here[0] == there[0] else f"{here[0]} here, {there[0]} on the CPU"
            yield f"{name}, keep {keep:g}: tokens", wrong
            stock, patched = here[1:]
            more = f"{patched} waits for the device, {stock} unpatched"
            yield f"{name}, keep {keep:g}: waits", "" if patched <= stock + 1 else more


def _answers(vtfast, name: str, keep: float, device: str, path: str) -> tuple:
    """Tokens said with the patch; and how often generating waits without it and with it."""
    model, processor = vtfast.toy.load(name)
    model.to(device)
    tasks = ("digit", "code", "background")
    asked = [vtfast.toy.scenes(1, 3, task)[:2] for task in tasks]
    inputs = processor(
        text=[vtfast.toy.prompt(processor, questions[0]) for _, questions in asked],
        images=[pictures[0] for pictures, _ in asked],
        padding=True,
        return_tensors="pt",
    ).to(device)

    def generate() -> torch.Tensor:
        return model.generate(**inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6)

    def waits() -> int:
        generate()
        return host_reads(generate) if device == "cuda" else len(_read_on_cpu(generate))

    before = waits()
    with vtfast.patch(model, keep=keep, path=path):
        return generate().tolist(), before, waits()


def calls(device: str) -> Verdicts:
    """Nothing is compared: run under a memory checker."""
    for name, (op, tensors) in op_calls(device).items():
        op(*tensors)
        if device == "cuda":
            torch.cuda.synchronize()
        yield name, ""


CHECKS = {check.__name__: check for check in (fixtures, reads, graphs, decoding, models, calls)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--write", action="store_true", help="write the fixtures anew")
    options = parser.parse_args()
    if options.write:
        write_fixtures()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    red = count = 0
    with torch.no_grad():
        for what, wrong in CHECKS[options.check](device):
            count, red = count + 1, red + bool(wrong)
            print(f"RED {what}: {wrong}" if wrong else f"ok {what}", flush=True)
    print(f"{options.check} on {device}: {count - red} of {count} right")
    return int(bool(red))


if __name__ == "__main__":
    sys.exit(main())
