"""Ragged batches to try attention on, and the error that is allowed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TINY = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LENGTHS = [
    pytest.param([], [], id="no sequences"),
    pytest.param([1], [1], id="one row"),
    pytest.param([7], [7], id="one sequence"),
    pytest.param([8, 8, 8], [8, 8, 8], id="equal lengths"),
    pytest.param([3, 3], [9, 9], id="equal lengths, more keys"),
    pytest.param([9, 9], [3, 3], id="equal lengths, fewer keys"),
    pytest.param([1, 1, 1], [5, 5, 5], id="one query each"),
    pytest.param([5, 5], [0, 0], id="no keys"),
    pytest.param([0, 0], [4, 4], id="no queries"),
    pytest.param([3, 3, 3], [5, 2, 0], id="equal queries, ragged keys"),
    pytest.param([2, 5, 0], [4, 4, 4], id="ragged queries, equal keys"),
    pytest.param([5, 0, 1, 13], [5, 3, 0, 13], id="ragged, empty on either side"),
    pytest.param([4, 9, 1, 2], [9, 4, 6, 1], id="ragged, queries and keys differ"),
]


def heads(rows, number, dtype=torch.float32, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, number, dim, generator=generator).to(dtype)


def inputs(q_rows, k_rows, num_heads=4, num_kv_heads=2, dtype=torch.float32, dim=16, seed=0):
    """Packed q, k, v."""
    return (
        heads(q_rows, num_heads, dtype, dim, seed),
        heads(k_rows, num_kv_heads, dtype, dim, seed + 1),
        heads(k_rows, num_kv_heads, dtype, dim, seed + 2),
    )


def fp64(*tensors):
    return [x.double().cpu().numpy() for x in tensors]


def sdpa_alone(q, k, v, q_lengths, k_lengths, causal, scale):
    """What the ops' users would write: one sequence at a time, an explicit mask, repeated heads."""
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    a = b = 0
    for nq, nk in zip(q_lengths, k_lengths, strict=True):
        seen = torch.ones(nq, nk, dtype=torch.bool, device=q.device)
        seen = seen.tril(nk - nq) if causal else seen
        rows = seen.any(1)
        keys, values = (x[b : b + nk].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        if rows.any():
            queries = q[a : a + nq][rows].transpose(0, 1)
            mixed = F.scaled_dot_product_attention(queries, keys, values, seen[rows], scale=scale)
            out[a : a + nq][rows] = mixed.transpose(0, 1)
        a, b = a + nq, b + nk
    return out


def allowed_error(exact, q, k, v, q_lengths, k_lengths, causal, scale):
    """Twice the error of SDPA in the same dtype, and a little where SDPA happens to be exact."""
    sdpa = sdpa_alone(q, k, v, q_lengths, k_lengths, causal, scale)
    return 2 * np.abs(*fp64(sdpa) - exact).max(initial=0.0) + TINY[q.dtype] / 8
