"""Ragged attention in prefill: full prompts, pruned ones, and keys read through an index.

Every rival is there that is installed: SDPA sequence by sequence and over a batch padded beforehand
(which costs it nothing here) with each of its backends, torch's `varlen_attn`, flash-attn 2 and 3,
FlexAttention. Keys through an index compete with gathering first. A percentage is of the bf16
matrix products (fp32 on a CPU) measured in the same run, counting the seen half of the matrix.

    python bench/bench_attention.py --help
"""

from collections.abc import Iterator

import torch
from attending import (
    after_gathering,
    flex,
    gate,
    of_packed,
    pairs,
    per_sequence,
    sdpa,
    unpadded,
    varlen,
)
from harness import Case, Way, main
from shapes import Workload, dtype_for, normal, workloads
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtfast.ops import Ragged, ragged_attention, random_select

SHARE = 0.25
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ON_CPU = ("llava b1", "qwen 1k")


def padded_ways(check) -> list[Way]:
    """SDPA over inputs that come padded at the right, where causality hides the padding."""

    def default(q, k, v, *padded):
        return sdpa(*padded, is_causal=True)

    ways = [Way("SDPA, padded", default, "fair", check)]
    for name, backend in BACKENDS.items() if torch.cuda.is_available() else ():

        def one(q, k, v, *padded, backend=backend):
            with sdpa_kernel(backend):
                return sdpa(*padded, is_causal=True)

        ways.append(Way(f"SDPA, padded, {name}", one, "fair", check))
    return ways


def prefill(w: Workload, device: str, with_flex: bool) -> Case:
    """Self-attention of a packed batch."""
    dtype, cut = dtype_for(device), Ragged.from_lengths(w.lengths, device)
    check = gate(cut, cut, True, lambda inputs: inputs[:3])

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        heads = (w.heads, w.key_heads, w.key_heads)
        q, k, v = (
            normal(3 * seed + i, w.rows, h, w.head_size, device=device, dtype=dtype)
            for i, h in enumerate(heads)
        )
        return (q, k, v, *(cut.pad(x, 0.0) for x in (q, k, v)))

    ways = [
        Way("SDPA per sequence", per_sequence(cut, cut, True), "eager"),
        *varlen(cut, cut, True),
        Way("vtfast", lambda q, k, v: ragged_attention(q, k, v, cut, cut), "vtfast"),
        *(flex(cut, cut, True) if with_flex else []),
    ]
    return Case(
        name=w.name,
        shape=f"{len(cut)} sequences, {w.rows} rows, {w.heads}/{w.key_heads} heads x {w.head_size}",
        dtype=dtype,
        make=make,
        ways=[*map(of_packed, ways), *padded_ways(unpadded(check, cut))],
        gate=check,
        nbytes=2 * w.rows * (w.heads + w.key_heads) * w.head_size * dtype.itemsize,
        flops=4 * w.heads * w.head_size * pairs(w.lengths, w.lengths, True),
    )


def through_an_index(w: Workload, device: str) -> Case:
    """Kept rows attend to kept keys, which still lie among all keys."""
    dtype, whole = dtype_for(device), Ragged.from_lengths(w.lengths, device)
    keep = w.keep(SHARE)
    cut = Ragged.from_lengths(keep, device)
    index = random_select(whole, keep, seed=0, stream=0)

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        rows = (sum(keep), w.rows, w.rows)
        heads = (w.heads, w.key_heads, w.key_heads)
        q, k, v = (
            normal(3 * seed + i, n, h, w.head_size, device=device, dtype=dtype)
            for i, (n, h) in enumerate(zip(rows, heads, strict=True))
        )
        return q, k, v

    def gathered(inputs: tuple) -> tuple:
        q, k, v = inputs
        return q, k[index], v[index]

    def loop(*inputs: torch.Tensor) -> torch.Tensor:
        return per_sequence(cut, cut, True)(*gathered(inputs))

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ragged_attention(q, k, v, cut, cut)

    def indexed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ragged_attention(q, k, v, cut, cut, k_index=index)

    rivals = [Way("ragged_attention", packed, "fair"), *varlen(cut, cut, True)]
    return Case(
        name=f"through an index, {w.name}, {SHARE:.0%}",
        shape=f"{sum(keep)} of {w.rows} rows, {w.heads}/{w.key_heads} heads x {w.head_size}",
        dtype=dtype,
        make=make,
        ways=[
            Way("index_select, SDPA per sequence", loop, "eager"),
            *(after_gathering(way, index) for way in rivals),
            Way("vtfast", indexed, "vtfast"),
        ],
        gate=gate(cut, cut, True, gathered),
        nbytes=2 * sum(keep) * (w.heads + w.key_heads) * w.head_size * dtype.itemsize,
        flops=4 * w.heads * w.head_size * pairs(keep, keep, True),
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    names = ON_CPU if device == "cpu" and not tiny else ()
    for w in workloads(tiny, *names):
        yield prefill(w.prompt(), device, w.name in ("llava b8", "qwen 4k"))
        yield prefill(w.kept(SHARE), device, False)
    for w in workloads(tiny, *(names or ("llava b1", "llava b8", "qwen 4k", "qwen 16k"))):
        yield through_an_index(w, device)


if __name__ == "__main__":
    main("attention", cases)
