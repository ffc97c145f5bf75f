"""Ragged decode: one new token per sequence over a KV cache without padding.

Sequences of a mix hold unequal numbers of rows; a padded batch reads the longest number for each.
The padded caches are filled beforehand, which costs them nothing here. The floor is to read every
key and value once.

    python bench/bench_decode.py --help
"""

from collections.abc import Iterator

import torch
from attending import after_gathering, flex, gate, of_packed, per_sequence, sdpa, unpadded, varlen
from harness import Case, Way, installed, main
from shapes import Workload, dtype_for, normal, workloads

from vtfast.ops import Ragged, ragged_decode, random_select

SHARE = 0.25


def kv_cache_way(lengths: torch.Tensor, check) -> Way:
    """flash-attn's own decode over padded caches."""
    name = "flash-attn 2 with_kvcache, padded"
    call, missing = installed("flash_attn", "flash_attn_with_kvcache")
    if call is None:
        return Way(name, None, "fair", missing=missing)

    def decode(q, k, v, k_padded, v_padded):
        return call(q[:, None], k_padded, v_padded, cache_seqlens=lengths)

    return Way(name, decode, "fair", check)


def case(w: Workload, device: str, with_flex: bool) -> Case:
    """Every sequence has a cache of its own length."""
    dtype, cut = dtype_for(device), Ragged.from_lengths(w.lengths, device)
    one = Ragged.from_lengths([1] * len(cut), device)
    on_device = cut.cu_seqlens.diff()
    lengths = on_device if device == "cuda" else w.lengths
    check = gate(one, cut, False, lambda inputs: inputs[:3])
    padded_check = unpadded(check, one)
    mask = None if cut.uniform_length is not None else cut.live[:, None, None]

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        q, k, v = _tensors(w, seed, device, dtype)
        return q, k, v, cut.pad(k, 0.0), cut.pad(v, 0.0)

    def padded(q, k, v, k_padded, v_padded):
        return sdpa(q[:, None], k_padded, v_padded, attn_mask=mask)

    ways = [
        Way("SDPA per sequence", per_sequence(one, cut, False), "eager"),
        *varlen(one, cut, False),
        Way("vtfast", lambda q, k, v: ragged_decode(q, k, v, lengths), "vtfast"),
        *(flex(one, cut, False) if with_flex else []),
    ]
    return Case(
        name=w.name,
        shape=_shape(w, w.rows),
        dtype=dtype,
        make=make,
        ways=[
            *map(of_packed, ways),
            Way("SDPA, padded", padded, "fair", padded_check),
            kv_cache_way(on_device, padded_check),
        ],
        gate=check,
        nbytes=_nbytes(w, w.rows, dtype),
        flops=4 * w.rows * w.heads * w.head_size,
    )


def through_an_index(w: Workload, device: str) -> Case:
    """A quarter of the rows of a larger cache, read where they lie."""
    dtype, whole = dtype_for(device), Ragged.from_lengths(w.lengths, device)
    keep = w.keep(SHARE)
    cut, one = (Ragged.from_lengths(n, device) for n in (keep, [1] * len(keep)))
    index = random_select(whole, keep, seed=0, stream=0)
    lengths = cut.cu_seqlens.diff() if device == "cuda" else keep

    def gathered(inputs: tuple) -> tuple:
        q, k, v = inputs
        return q, k[index], v[index]

    def loop(*inputs: torch.Tensor) -> torch.Tensor:
        return per_sequence(one, cut, False)(*gathered(inputs))

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ragged_decode(q, k, v, lengths)

    def indexed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ragged_decode(q, k, v, lengths, k_index=index)

    rivals = [Way("ragged_decode", packed, "fair"), *varlen(one, cut, False)]
    return Case(
        name=f"through an index, {w.name}, {SHARE:.0%}",
        shape=_shape(w, sum(keep)),
        dtype=dtype,
        make=lambda seed: _tensors(w, seed, device, dtype),
        ways=[
            Way("index_select, SDPA per sequence", loop, "eager"),
            *(after_gathering(way, index) for way in rivals),
            Way("vtfast", indexed, "vtfast"),
        ],
        gate=gate(one, cut, False, gathered),
        nbytes=_nbytes(w, sum(keep), dtype),
        flops=4 * sum(keep) * w.heads * w.head_size,
    )


def _tensors(w: Workload, seed: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    shapes = ((len(w.lengths), w.heads), (w.rows, w.key_heads), (w.rows, w.key_heads))
    return tuple(
        normal(3 * seed + i, *shape, w.head_size, device=device, dtype=dtype)
        for i, shape in enumerate(shapes)
    )


def _shape(w: Workload, rows: int) -> str:
    return f"{len(w.lengths)} sequences, {rows} rows, {w.heads}/{w.key_heads} heads x {w.head_size}"


def _nbytes(w: Workload, rows: int, dtype: torch.dtype) -> int:
    return 2 * (rows * w.key_heads + len(w.lengths) * w.heads) * w.head_size * dtype.itemsize


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w.prompt(), device, w.name in ("llava b8", "qwen mix b8"))
    for w in workloads(tiny, "llava b8", "qwen 16k", "qwen mix b8"):
        yield through_an_index(w, device)


if __name__ == "__main__":
    main("decode", cases)
