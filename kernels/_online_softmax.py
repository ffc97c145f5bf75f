"""Online softmax, which the attention kernels share: fold keys and values in block by block.

The state of each query is the largest logit so far (`m_i`), the sum of exp(logit - m_i) (`l_i`),
and the values summed with those weights (`acc`). A larger maximum scales `l_i` and `acc` down, so
logits never overflow and no block is read twice. Exponentials are in base 2, for which the hardware
has an instruction; `scale` carries the factor log2(e) and must be positive.

Source: Milakov and Gimelshein, arXiv 1805.02867; Dao, FlashAttention-2, arXiv 2307.08691;
re-derived.
"""

import torch

from ._checks import why_unsupported_dtype
from ._launch import INTERPRET, tl, triton
from ._tiles import MAX_HEAD

LOG2E = 1.4426950408889634
MIN_SCALE = 2.0**-126  # the smallest normal number of fp32; smaller scales may become 0


def why_unsupported_attention(scale: float, *tensors: torch.Tensor) -> str:
    """Why the kernels cannot attend to these `[rows, heads, D]`; "" if they can."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "the kernel has no backward and a tensor needs a gradient"
    if not scale * LOG2E >= MIN_SCALE:
        return f"the kernel takes a scale above 0, got {scale}"
    return why_unsupported_heads(tensors[0].dtype, tensors[0].shape[2])


def why_unsupported_heads(dtype: torch.dtype, head_size: int) -> str:
    """Why the kernels cannot attend with heads of this dtype and size; "" if they can."""
    if why := why_unsupported_dtype(dtype):
        return why
    if (limit := MAX_HEAD[dtype.itemsize]) >= head_size > 0:
        return ""
    return f"the kernel takes head sizes 1 to {limit} in {dtype}, got {head_size}"


def with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if its last dimension is contiguous, as the kernels read it, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def dot_operand(x):
    """`x` as `tl.dot` takes it; fp32 in the interpreter, which computes bf16 on raw bits."""
    return x.to(tl.float32) if INTERPRET else x


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to nearest even; by hand in the interpreter, which truncates bf16."""
    if INTERPRET and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x == x, upper, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def init_softmax_state(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`m_i`, `l_i` and `acc` before the first key."""
    m_i = tl.full([ROWS], float("-inf"), tl.float32)
    return m_i, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def online_softmax_step(
    # queries and their softmax state
    q,
    m_i,
    l_i,
    acc,
    # keys and values of one head: at packed positions, or where the index at those positions says
    k_ptr,
    v_ptr,
    index_ptr,
    position,
    # which positions exist: [keys]; and which of them a query sees: [queries, keys]
    live,
    seen,
    # strides between rows
    stride_kt,
    stride_vt,
    # factor on the logits, times log2(e)
    scale,
    # meta
    D: tl.constexpr,  # columns of the head; q may be padded to more
    PRECISION: tl.constexpr,
):
    """Fold one block of keys and values in and return the new `m_i`, `l_i`, `acc`.

    A position that is not live reads as 0. Masks that are constantly true cost
    nothing: the compiler drops them.
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
    logits = tl.dot(q, dot_operand(k), input_precision=PRECISION)
    logits = tl.where(seen, logits, float("-inf"))
    m_new = tl.maximum(m_i, tl.max(logits, axis=1) * scale)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)  # no key yet: -inf - -inf is NaN
    p = tl.exp2(logits * scale - base[:, None])
    alpha = tl.exp2(m_i - base)
    v = tl.load(v_ptr + row[:, None] * stride_vt + d[None, :], mask=v_mask, other=0.0)
    l_i = l_i * alpha + tl.sum(p, axis=1)
    p = p if INTERPRET else p.to(v.dtype)
    acc = tl.dot(p, dot_operand(v), acc * alpha[:, None], input_precision=PRECISION)
    return m_new, l_i, acc
