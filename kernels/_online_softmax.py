"""Fold keys and values into a softmax block by block: what the attention kernels share.

Three running values per query: the largest logit so far (`top`), the sum of the weights relative to
it (`weight`), and the values mixed with those weights (`mixed`). A higher top scales both sums
down, so logits never overflow and no block is read twice. Exponentials are to the base 2, which the
hardware has; `scale` carries the factor log2(e) and must be positive.

Source: Milakov and Gimelshein, arXiv 1805.02867; Dao, FlashAttention-2, arXiv 2307.08691;
re-derived.
"""

import torch

from ._checks import foreign
from ._launch import INTERPRET, tl, triton
from ._tiles import MAX_HEAD

LOG2E = 1.4426950408889634
LEAST_SCALE = 2.0**-126  # smaller ones are 0 in fp32, and so is no logit


def unable(scale: float, *tensors: torch.Tensor) -> str:
    """Why the kernels cannot attend to these `[rows, heads, D]`, "" if they can."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "the kernel has no backward and a tensor needs a gradient"
    if not scale * LOG2E >= LEAST_SCALE:
        return f"the kernel takes a scale above 0, got {scale}"
    return beyond(tensors[0].dtype, tensors[0].shape[2])


def beyond(dtype: torch.dtype, head_size: int) -> str:
    """Why the kernels cannot attend with heads of this dtype and size, "" if they can."""
    if why := foreign(dtype):
        return why
    if (limit := MAX_HEAD[dtype.itemsize]) >= head_size > 0:
        return ""
    return f"the kernel takes head sizes 1 to {limit} in {dtype}, got {head_size}"


def columns_together(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if its last dimension is contiguous, as the kernels read it, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def lift(x):
    """`x` for the tensor core; in the interpreter fp32, because it computes bf16 on raw bits."""
    return x.to(tl.float32) if INTERPRET else x


@triton.jit
def lower(x, DTYPE: tl.constexpr):
    """fp32 rounded to nearest even; the interpreter cuts bf16 off, so there it is done by hand."""
    if INTERPRET and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        top = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x == x, top, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def nothing_yet(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`top`, `weight` and `mixed` before the first key."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    return top, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def absorb(
    # queries and their running values
    q,
    top,
    weight,
    mixed,
    # keys and values of one head, at packed positions, or where the index at those says
    k_ptr,
    v_ptr,
    index_ptr,
    position,
    # which positions there are, and which of them a query sees: [queries, keys]
    live,
    seen,
    # strides between rows
    stride_kt,
    stride_vt,
    # factor on the products, to the base 2
    scale,
    # meta
    D: tl.constexpr,  # of the columns that q has
    PRECISION: tl.constexpr,
):
    """Fold one block of keys and values in. What is not live reads as 0, whatever it holds.

    Masks that are constant truths cost nothing: the compiler drops them.
    """
    if index_ptr is None:
        row = position.to(tl.int64)
    else:
        row = tl.load(index_ptr + position, mask=live, other=0).to(tl.int64)
    d = tl.arange(0, q.shape[1])
    k_mask, v_mask = live[None, :], live[:, None]
    if q.shape[1] != D:
        k_mask, v_mask = k_mask & (d < D)[:, None], v_mask & (d < D)[None, :]
    k = tl.load(k_ptr + row[None, :] * stride_kt + d[:, None], mask=k_mask, other=0.0)
    logits = tl.dot(q, lift(k), input_precision=PRECISION)
    logits = tl.where(seen, logits, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, axis=1) * scale)
    base = tl.where(higher == float("-inf"), 0.0, higher)  # no key yet: -inf - -inf is NaN
    weights = tl.exp2(logits * scale - base[:, None])
    fade = tl.exp2(top - base)
    v = tl.load(v_ptr + row[:, None] * stride_vt + d[None, :], mask=v_mask, other=0.0)
    weight = weight * fade + tl.sum(weights, axis=1)
    weights = weights if INTERPRET else weights.to(v.dtype)
    mixed = tl.dot(weights, lift(v), mixed * fade[:, None], input_precision=PRECISION)
    return higher, weight, mixed
