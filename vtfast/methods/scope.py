"""SCOPE: keep tokens that the vision tower attends to and that cover the picture.

Greedily, in fp32: with m_i the largest cosine of token i to a token picked so far (0 before any),

    gain_j = a_j · Σ_i max(0, cos(x_i, x_j) - m_i)        each pick has the largest gain

a is `ctx.vision_scores`, and x are the hidden states that enter the layer: at layer 0 the projected
features.

Source: SCOPE (NeurIPS 2025, arXiv 2510.24214), re-derived from the paper, with its exponent of a at
1. Different here: the authors prune inside the tower, by cosines of its features before the
projector. Ties and broken values: see `vtfast.ops.coverage_select`.
"""

from torch import Tensor

from vtfast.kernels.coverage_select import coverage_select
from vtfast.methods.context import SelectionContext


def scope(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending."""
    index = coverage_select(ctx.features, ctx.vision_scores, ctx.segments, ctx.keep, impl=ctx.impl)
    assert isinstance(index, Tensor)  # a pair only with return_order=True
    return index
