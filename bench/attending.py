"""What the attention benches share: the baselines' calls, and answers in fp64 for chosen rows."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from harness import Way, installed
from parity import Check, nearly

from vtfast.ops import Ragged, gather_rows

SAMPLED = 48  # query rows of a sequence that are checked
TINY = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **names: object) -> torch.Tensor:
    """Attention of `[B, n, H, D]` tensors."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **names)
    return out.transpose(1, 2)


def per_sequence(q_segments: Ragged, k_segments: Ragged, causal: bool) -> Attend:
    """SDPA, sequence by sequence."""
    cuts = list(zip(pairwise(q_segments.offsets), pairwise(k_segments.offsets), strict=True))

    def loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [sdpa(q[None, a:b], k[None, c:d], v[None, c:d], is_causal=causal)[0]
             for (a, b), (c, d) in cuts]
        )  # fmt: skip

    return loop


def varlen(q_segments: Ragged, k_segments: Ragged, causal: bool) -> list[Way]:
    """Packed attention of torch, FlashAttention 2 and 3."""
    counts = (q_segments.max_seqlen, k_segments.max_seqlen)
    cuts = (q_segments.cu_seqlens, k_segments.cu_seqlens)
    ways = []
    for name, module, function in (
        ("torch varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
        ("flash-attn 2 varlen", "flash_attn", "flash_attn_varlen_func"),
        ("flash-attn 3 varlen", "flash_attn_interface", "flash_attn_varlen_func"),
    ):
        call, missing = installed(module, function)
        names = _masking(call, causal) if call else {}

        def attend(q, k, v, call=call, names=names):
            out = call(q, k, v, *cuts, *counts, **names)
            return out[0] if isinstance(out, tuple) else out

        ways.append(Way(name, attend if call else None, "fair", missing=missing))
    return ways


def _masking(call: Callable, causal: bool) -> dict:
    """How this version is told to be causal, and that heads are grouped, where it must be told."""
    known = inspect.signature(call).parameters
    names: dict = {"enable_gqa": True} if "enable_gqa" in known else {}
    for name in ("causal", "is_causal"):
        if name in known:
            return {**names, name: causal}
    return {**names, "window_size": (-1, 0) if causal else (-1, -1)}


def flex(q_segments: Ragged, k_segments: Ragged, causal: bool) -> list[Way]:
    """FlexAttention over the packed batch with a block mask, and the making of that mask apart."""
    attention, missing = installed("torch.nn.attention.flex_attention", "flex_attention")
    build, _ = installed("torch.nn.attention.flex_attention", "create_block_mask")
    if attention is None or build is None:
        return [Way("FlexAttention", None, "compiled", missing=missing)]
    q_of, q_at = q_segments.cells
    k_of, k_at = k_segments.cells
    ahead = (k_segments.cu_seqlens.diff() - q_segments.cu_seqlens.diff())[q_of]

    def sees(batch, head, row, column):
        same = q_of[row] == k_of[column]
        return same & (q_at[row] + ahead[row] >= k_at[column]) if causal else same

    def mask(*_: torch.Tensor):
        shape = (q_segments.total, k_segments.total)
        return build(sees, None, None, *shape, device=str(q_segments.device))

    def compiled(compile: Callable) -> Attend:
        blocks, function = mask(), compile(attention)

        def attend(q, k, v):
            grouped = q.shape[1] != k.shape[1]
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = function(q, k, v, block_mask=blocks, enable_gqa=grouped)
            return out[0].transpose(0, 1)

        return attend

    return [
        Way("FlexAttention", compiled, "compiled"),
        Way("FlexAttention, its mask", mask, "note"),
    ]


def of_packed(way: Way) -> Way:
    """The way, called with q, k and v alone where the inputs hold padded ones behind them."""
    make = way.call
    if make is None or way.role == "note":
        return way
    if way.role != "compiled":
        return replace(way, call=lambda q, k, v, *_: make(q, k, v))

    def compiled(compile: Callable) -> Callable[..., torch.Tensor]:
        attend = make(compile)
        return lambda q, k, v, *_: attend(q, k, v)

    return replace(way, call=compiled)


def after_gathering(way: Way, index: torch.Tensor) -> Way:
    """The way, with keys and values copied together first."""
    attend = way.call
    name = f"gather_rows, {way.name}"
    if attend is None:
        return replace(way, name=name)
    return replace(way, name=name, call=lambda q, k, v: attend(q, *gather_rows(index, k, v)))


def gate(
    q_segments: Ragged, k_segments: Ragged, causal: bool, picked: Callable[[tuple], tuple]
) -> Callable[[tuple], Check]:
    """Errors on sampled rows are at most twice those of SDPA in the same dtype, both to fp64.

    `picked` reads q, k and v, cut by these segments, off the inputs.
    """

    def checked(inputs: tuple) -> Check:
        q, k, v = picked(inputs)
        rows, expected = _exact_rows(q, k, v, q_segments, k_segments, causal)
        plain = per_sequence(q_segments, k_segments, causal)(q, k, v)[rows]
        error = (plain.double() - expected).abs().max().item() if len(rows) else 0.0
        near = nearly(expected, 2 * error + TINY[q.dtype])

        def check(got: torch.Tensor) -> str:
            if got.shape != q.shape:
                return f"shape {tuple(got.shape)}, expected {tuple(q.shape)}"
            return near(got[rows]) or ("" if got.isfinite().all() else "something is not finite")

        return check

    return checked


def _exact_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_segments: Ragged,
    k_segments: Ragged,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spread query rows, the first and the last among them, and their attention in fp64."""
    group, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    rows, answers = [], []
    for (a, b), (c, d) in zip(
        pairwise(q_segments.offsets), pairwise(k_segments.offsets), strict=True
    ):
        some = torch.linspace(0, b - a - 1, min(SAMPLED, b - a), device=q.device).long()
        keys, values = (x[c:d].double().repeat_interleave(group, 1) for x in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q[a + some].double(), keys) * scale
        if causal:
            later = torch.arange(d - c, device=q.device) > (some + (d - c) - (b - a))[:, None]
            logits = logits.masked_fill(later, -torch.inf)
        answers.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), values))
        rows.append(a + some)
    return torch.cat(rows), torch.cat(answers)


def unpadded(check: Callable[[tuple], Check], segments: Ragged) -> Callable[[tuple], Check]:
    """The same check of an answer that is padded, `[B, n, H, D]`."""

    def gate(inputs: tuple) -> Check:
        near = check(inputs)
        return lambda got: near(got[segments.cells])

    return gate


def pairs(q_lengths: Sequence[int], k_lengths: Sequence[int], causal: bool) -> int:
    """How many keys all queries see together."""
    if not causal:
        return sum(a * b for a, b in zip(q_lengths, k_lengths, strict=True))
    return sum(a * (b - a) + a * (a + 1) // 2 for a, b in zip(q_lengths, k_lengths, strict=True))
