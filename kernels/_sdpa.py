"""Attention in plain PyTorch, from which `reference` builds its attention ops.

Everything ends in `scaled_dot_product_attention` over `[B, nq, H, D]` queries and `[B, nk, Hkv, D]`
keys. They are token-major like the packed tensors, so that they can be views of them.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F

# Cells of a causal mask made at once: with its copy as floats, at most 160 MiB.
_MAX_MASK = 2**25


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float | None
) -> torch.Tensor:
    """Attention of `[B, nq, H, D]` to `[B, nk, Hkv, D]`; causal means aligned bottom-right."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    if num_keys == 0:
        return torch.zeros_like(q)
    blind = max(0, num_queries - num_keys) if causal else 0  # queries before the first key
    mask = None
    if causal and 1 < num_queries < num_keys:
        if num_queries * num_keys > _MAX_MASK:
            return _attend_in_parts(q, k, v, max(1, _MAX_MASK // num_keys), scale)
        mask = q.new_ones((num_queries, num_keys), dtype=torch.bool).tril(num_keys - num_queries)
    out = _attention(
        q[:, blind:].transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and num_queries >= num_keys,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)
    return F.pad(out, (0, 0, 0, 0, blind, 0)) if blind else out


def _attend_in_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: int, scale: float | None
) -> torch.Tensor:
    """Causal attention, `step` queries at a time, to the keys that the last of them sees."""
    earlier, parts = k.shape[1] - q.shape[1], []
    for first, part in zip(range(0, q.shape[1], step), q.split(step, 1), strict=True):
        seen = earlier + first + part.shape[1]
        parts.append(attend(part, k[:, :seen], v[:, :seen], True, scale))
    return torch.cat(parts, 1)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: Any) -> torch.Tensor:
    """PyTorch's attention in the dtype of `q`, which autocast would change."""
    if q.is_meta or not torch.is_autocast_enabled(q.device.type):  # which knows no meta device
        return F.scaled_dot_product_attention(q, k, v, **how)
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, **how)


def attend_ranges(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: Sequence[int],
    starts: Sequence[int],
    scale: float | None,
) -> torch.Tensor:
    """Decode with host ranges: in one call if equally long and evenly spaced, else in a loop."""
    steps = {b - a for a, b in pairwise(starts)} or {0}
    if len(set(lengths)) == 1 and len(steps) == 1 and min(steps) >= 0:
        return attend_windows(q, k_cache, v_cache, (lengths[0], min(steps), starts[0]), scale)
    out = torch.empty_like(q)
    for s, (a, length) in enumerate(zip(starts, lengths, strict=True)):
        k, v = k_cache[None, a : a + length], v_cache[None, a : a + length]
        out[s : s + 1] = attend(q[s : s + 1], k, v, False, scale)
    return out


def back_to_back(lengths: Sequence[int] | torch.Tensor) -> Sequence[int] | torch.Tensor:
    """First row of each sequence if they follow one another: ints or a tensor, as `lengths` is."""
    if isinstance(lengths, torch.Tensor):
        return lengths.cumsum(0, dtype=torch.int32) - lengths
    return tuple(accumulate(lengths, initial=0))[:-1]


def attend_unread(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    """Decode with ranges on the device, which are not read back: pad all sequences to `longest`.

    This copies B x longest rows. Columns past the end of a sequence repeat its last row, so rows of
    other sequences never enter its arithmetic.
    """
    if not longest:
        return torch.zeros_like(q)
    columns = torch.arange(longest, device=q.device)
    rows = starts[:, None] + columns.minimum(lengths[:, None] - 1)
    rows = rows.clamp(0, len(k_cache) - 1)
    k, v = k_cache[rows].transpose(1, 2), v_cache[rows].transpose(1, 2)
    mask = (columns < lengths[:, None])[:, None, None]
    out = _attention(q.transpose(1, 2), k, v, attn_mask=mask, scale=scale)
    return out.where(lengths[:, None, None, None] > 0, 0.0).transpose(1, 2)


def attend_windows(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    window: tuple[int, int, int],
    scale: float | None,
) -> torch.Tensor:
    """Decode with ranges of one length that are evenly spaced, in one call on views.

    `window`: rows of a range, rows from one start to the next, rows before the first range.
    """
    k, v = _windows(k_cache, len(q), *window), _windows(v_cache, len(q), *window)
    return attend(q, k, v, False, scale)


def _windows(x: torch.Tensor, number: int, length: int, step: int, start: int) -> torch.Tensor:
    """View of `number` windows of rows, `step` rows apart: `[number, length, ...]`."""
    offset = x.storage_offset() + start * x.stride(0)
    strides = (step * x.stride(0), *x.stride())
    return x.as_strided((number, length, *x.shape[1:]), strides, offset)
