"""Diversity: keep tokens that are far from one another in cosine distance, picked greedily.

With d(i, j) = 1 - cos(x_i, x_j), start from the token whose nearest other token is farthest, then
add the token with the largest distance to its nearest picked token, again and again.

    centre=True           cosines are those of x - mean(x), the mean over the picture
    distinct="minmax"     all distances of token i count times g_i scaled to [0, 1] over the picture
    distinct="sigmoid"    or times 1 / (1 + exp(-(g_i - mean(g)) / deviation(g)))

where g_i = -mean over j ≠ i of cos(x_i, x_j) tells how unlike the others a token is.

Source: DivPrune (CVPR 2025, arXiv 2503.02175); see `vtfast.ops.diversity_select` for what differs.
The options are those of Cen-Prune (arXiv 2608.30263), from its formulas: it uses both, "minmax" for
LLaVA and "sigmoid" for Qwen. Its first token is not known to us; here it is DivPrune's, with
distances that count g_i times. For Qwen it compares features before the merger; here, as always,
the hidden states entering the layer.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtfast.kernels.diversity_select import diversity_select
from vtfast.methods._unit_range import ROUNDING, unit_range
from vtfast.methods.context import SelectionContext


def diversity(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending."""
    features, weights, options = ctx.features, None, ctx.options
    if options.get("distinct", "none") != "none":
        weights = _distinctness(ctx)
    if options.get("centre"):
        features = torch.cat([x - x.mean(0) for x in _pictures(ctx)])
    index = diversity_select(features, ctx.segments, ctx.keep, weights=weights, impl=ctx.impl)
    assert isinstance(index, Tensor)  # a pair only with return_order=True
    return index


def _pictures(ctx: SelectionContext) -> list[Tensor]:
    """fp32 features of each segment: a sum over several might depend on the rest of the batch."""
    return [ctx.features[a:b].float() for a, b in pairwise(ctx.segments.offsets)]


def _distinctness(ctx: SelectionContext) -> Tensor:
    """fp32 `[n]`, what the distances of each token count."""
    unlike = []
    for x in _pictures(ctx):
        x = normalize(x, dim=-1)
        # The sum of all cosines of a token is its product with the sum of all directions.
        to_others = (x * x.sum(0)).sum(-1) - (x * x).sum(-1)
        unlike.append(-to_others / max(1, len(x) - 1))
    if ctx.options["distinct"] == "minmax":
        return unit_range(torch.cat(unlike), ctx.segments)
    return torch.cat([torch.sigmoid(_standardised(g)) for g in unlike])


def _standardised(g: Tensor) -> Tensor:
    deviation = g.std(correction=0) if len(g) > 1 else g.new_zeros(())
    return torch.where(deviation >= ROUNDING, (g - g.mean()) / deviation, 0.0)
