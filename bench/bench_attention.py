"""Ragged attention in prefill and in decoding: whole prompts, and keys read through an index.

Every baseline that is installed takes part: SDPA sequence by sequence and over batches padded
beforehand (which is not timed) with each of its backends, torch's `varlen_attn`, flash-attn 2
and 3, FlexAttention. Reading keys through an index is compared with gathering them first.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from harness import Case, Variant, compiled, installed, main
from parity import Check, attention_near
from shapes import Workload, dtype_for, normal, workloads
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtfast.ops import Ragged, gather_rows, ragged_attention, ragged_decode, random_select

SHARE = 0.25
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
VARLEN = (
    ("torch varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
    ("flash-attn 2 varlen", "flash_attn", "flash_attn_varlen_func"),
    ("flash-attn 3 varlen", "flash_attn_interface", "flash_attn_varlen_func"),
)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **names: object) -> torch.Tensor:
    """Attention of `[B, n, H, D]` tensors."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **names).transpose(1, 2)


@dataclass(frozen=True)
class Batch:
    """Packed queries and keys of the same sequences, and the baselines for their attention.

    Inputs begin with packed q, k and v; padded ones may follow.
    """

    w: Workload
    q: Ragged
    k: Ragged
    causal: bool

    def parts(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return list(zip(pairwise(self.q.offsets), pairwise(self.k.offsets), strict=True))

    def per_sequence(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: torch.Tensor):
        return torch.cat([sdpa(q[None, a:b], k[None, c:d], v[None, c:d], is_causal=self.causal)[0]
                          for (a, b), (c, d) in self.parts()])  # fmt: skip

    def varlen(self) -> list[Variant]:
        """Packed attention of torch, FlashAttention 2 and 3."""
        lengths = (self.q.cu_seqlens, self.k.cu_seqlens, self.q.max_seqlen, self.k.max_seqlen)
        variants = []
        for name, module, function in VARLEN:
            call, missing = installed(module, function)
            names = self._masking(call) if call else {}

            def attend(q, k, v, *_, call=call, names=names):
                out = call(q, k, v, *lengths, **names)
                return out[0] if isinstance(out, tuple) else out

            variants.append(Variant(name, attend if call else None, "fair", missing=missing))
        return variants

    def _masking(self, call: Callable) -> dict:
        """Arguments that make this version causal, and let it take grouped heads if needed."""
        known = inspect.signature(call).parameters
        names: dict = {"enable_gqa": True} if "enable_gqa" in known else {}
        causal = [name for name in ("causal", "is_causal") if name in known]
        window = {"window_size": (-1, 0) if self.causal else (-1, -1)}
        return names | ({causal[0]: self.causal} if causal else window)

    def flex(self) -> list[Variant]:
        """FlexAttention with a block mask, and the making of that mask as a variant of its own."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        (q_of, q_at), (k_of, k_at) = self.q.cells, self.k.cells
        ahead = (self.k.cu_seqlens.diff() - self.q.cu_seqlens.diff())[q_of]
        shape, device = (self.q.total, self.k.total), str(self.q.device)

        def sees(batch, head, row, column):
            same = q_of[row] == k_of[column]
            return same & (q_at[row] + ahead[row] >= k_at[column]) if self.causal else same

        def mask(*_: torch.Tensor):
            return create_block_mask(sees, None, None, *shape, device=device)

        blocks, function = mask(), compiled(flex_attention)

        def attend(q, k, v, *_):
            grouped = q.shape[1] != k.shape[1]
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            return function(q, k, v, block_mask=blocks, enable_gqa=grouped)[0].transpose(0, 1)

        names = ("FlexAttention", "FlexAttention, its mask")
        return [Variant(names[0], attend, "compiled"), Variant(names[1], mask, "note")]

    def gate(self, inputs: tuple) -> Check:
        plain = self.per_sequence(*inputs[:3])
        return attention_near(*inputs[:3], self.parts(), self.causal, plain)

    def padded_gate(self, inputs: tuple) -> Check:
        """The gate for a padded answer, `[B, n, H, D]`."""
        near = self.gate(inputs)
        return lambda got: near(got[self.q.cells])

    def make(self, seed: int, keys: int) -> tuple[torch.Tensor, ...]:
        """Packed queries, and `keys` packed keys and values."""
        device, sizes = str(self.q.device), [(keys, self.w.key_heads)] * 2
        how = {"device": device, "dtype": dtype_for(device)}
        sizes = [(self.q.total, self.w.heads), *sizes]
        return tuple(normal(3 * seed + i, *size, self.w.head_size, **how)
                     for i, size in enumerate(sizes))  # fmt: skip

    def case(self, name: str, make: Callable, variants: list[Variant], gate: Callable) -> Case:
        w, size, dtype = self.w, self.w.head_size, dtype_for(str(self.q.device))
        seen = sum(n * (n + 1) // 2 for n in self.q.lengths) if self.causal else self.k.total
        moved = self.k.total * w.key_heads + self.q.total * w.heads
        shape = (
            f"{len(self.q)} sequences, {self.k.total} rows, {w.heads}/{w.key_heads} heads x {size}"
        )
        nbytes, flops = 2 * moved * size * dtype.itemsize, 4 * seen * w.heads * size
        return Case(name, shape, dtype, make, variants, gate, nbytes, flops)


def prefill(w: Workload, device: str, with_flex: bool) -> Case:
    """Self-attention of a packed batch; padding, at the right, is hidden by the causal mask."""
    segments = Ragged.from_lengths(w.lengths, device)
    batch = Batch(w, segments, segments, True)

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        tensors = batch.make(seed, w.total)
        return (*tensors, *(segments.pad(x, 0.0) for x in tensors))

    def padded(q, k, v, *padded, backend=None):
        if backend is None:
            return sdpa(*padded, is_causal=True)
        with sdpa_kernel(backend):
            return sdpa(*padded, is_causal=True)

    vtfast = lambda q, k, v, *_: ragged_attention(q, k, v, segments, segments)  # noqa: E731
    variants = [
        Variant("SDPA per sequence", batch.per_sequence, "eager"),
        *batch.varlen(),
        Variant("vtfast", vtfast, "vtfast"),
        *(batch.flex() if with_flex else []),
        Variant("SDPA, padded", padded, "fair", batch.padded_gate),
    ]
    for name, backend in BACKENDS.items() if device == "cuda" else ():
        one = lambda *inputs, backend=backend: padded(*inputs, backend=backend)  # noqa: E731
        variants.append(Variant(f"SDPA, padded, {name}", one, "fair", batch.padded_gate))
    return batch.case(w.name, make, variants, batch.gate)


def decode(w: Workload, device: str, with_flex: bool) -> Case:
    """One new token per sequence, each with a cache of its own length."""
    segments, one = (Ragged.from_lengths(n, device) for n in (w.lengths, [1] * len(w.lengths)))
    batch, on_device = Batch(w, one, segments, False), segments.cu_seqlens.diff()
    lengths = on_device if device == "cuda" else w.lengths
    mask = None if segments.uniform_length is not None else segments.live[:, None, None]

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        q, k, v = batch.make(seed, w.total)
        return q, k, v, segments.pad(k, 0.0), segments.pad(v, 0.0)

    def padded(q, k, v, k_padded, v_padded):
        return sdpa(q[:, None], k_padded, v_padded, attn_mask=mask)

    flash, missing = installed("flash_attn", "flash_attn_with_kvcache")

    def flash_decode(q, k, v, k_padded, v_padded):
        return flash(q[:, None], k_padded, v_padded, cache_seqlens=on_device)

    check, name = batch.padded_gate, "flash-attn 2 with_kvcache, padded"
    variants = [
        Variant("SDPA per sequence", batch.per_sequence, "eager"),
        *batch.varlen(),
        Variant("vtfast", lambda q, k, v, *_: ragged_decode(q, k, v, lengths), "vtfast"),
        *(batch.flex() if with_flex else []),
        Variant("SDPA, padded", padded, "fair", check),
        Variant(name, flash_decode if flash else None, "fair", check, missing),
    ]
    return batch.case(w.name, make, variants, batch.gate)


def through_an_index(w: Workload, device: str, decoding: bool) -> Case:
    """Attention to the kept keys and values, read through an index instead of gathered first."""
    whole, keep = Ragged.from_lengths(w.lengths, device), w.keep(SHARE)
    kept = Ragged.from_lengths(keep, device)
    queries = Ragged.from_lengths([1] * len(keep), device) if decoding else kept
    index = random_select(whole, keep, seed=0, stream=0)
    batch = Batch(w, queries, kept, not decoding)
    lengths = kept.cu_seqlens.diff() if device == "cuda" else keep

    def gathered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return q, k[index], v[index]

    def attend(*qkv: torch.Tensor, k_index: torch.Tensor | None = None) -> torch.Tensor:
        if decoding:
            return ragged_decode(*qkv, lengths, k_index=k_index)
        return ragged_attention(*qkv, kept, kept, k_index=k_index)

    def after_gathering(variant: Variant) -> Variant:
        call, name = variant.call, f"gather_rows, {variant.name}"
        gathers = call and (lambda q, k, v: call(q, *gather_rows(index, k, v)))
        return replace(variant, name=name, call=gathers)

    op = Variant("ragged_decode" if decoding else "ragged_attention", attend, "fair")
    loop = lambda *qkv: batch.per_sequence(*gathered(*qkv))  # noqa: E731
    variants = [
        Variant("index_select, SDPA per sequence", loop, "eager"),
        *map(after_gathering, [op, *batch.varlen()]),
        Variant("vtfast", lambda *qkv: attend(*qkv, k_index=index), "vtfast"),
    ]
    name, gate = f"through an index, {w.name}, {SHARE:.0%}", lambda i: batch.gate(gathered(*i))
    return batch.case(name, lambda seed: batch.make(seed, w.total), variants, gate)


def attention_cases(device: str, tiny: bool) -> Iterator[Case]:
    on_cpu = ("llava b1", "qwen 1k") if device == "cpu" and not tiny else ()
    for w in workloads(tiny, *on_cpu):
        yield prefill(w.prompt(), device, w.name in ("llava b8", "qwen 4k"))
        yield prefill(w.prompt(SHARE), device, False)
    for w in workloads(tiny, *(on_cpu or ("llava b1", "llava b8", "qwen 4k", "qwen 16k"))):
        yield through_an_index(w, device, decoding=False)


def decode_cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield decode(w.prompt(), device, w.name in ("llava b8", "qwen mix b8"))
    for w in workloads(tiny, "llava b8", "qwen 16k", "qwen mix b8"):
        yield through_an_index(w, device, decoding=True)


OPS = {"attention": attention_cases, "decode": decode_cases}

if __name__ == "__main__":
    main(OPS, __doc__)
