"""CDPruner: keep tokens that are relevant to the prompt's text and unlike one another.

They are the greedy maximum a posteriori of a determinantal point process, in fp32:

    L_ij = q_i · cos(x_i, x_j) · q_j        each pick adds the largest factor to det(L_S)
    q_i  = (r_i - min r) / (max r - min r) + 1e-6        within a picture, frame or tile
    r_i  = mean over the prompt's text tokens t of cos(x_i, t)

x are the hidden states of visual tokens that enter the layer, and t those of text tokens: at layer
0 the projected features, and the language model's own embeddings.

Source: CDPruner (NeurIPS 2025, arXiv 2506.10967). Different here:

- The authors compare the tower's features with CLIP's embedding of the question, which LLaVA's
  checkpoints do not have, and take the relevance with a minus. Here text and tokens are compared in
  the language model, as OpenVINO GenAI does, where the more similar is the more relevant;
  `relevance="opposite"` puts the minus back.
- The range of r is that of a picture and not of a batch, whose pictures would affect one another.
- Words of the chat template and the system prompt are text too.
- Ties and broken values: see `vtfast.ops.dpp_select`. A token that is nearly a combination of those
  picked adds nothing; where no other is left, as among nearly parallel features, the first in
  reading order follow, whatever their relevance.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtfast.kernels.dpp_select import dpp_select
from vtfast.methods._unit_range import unit_range
from vtfast.methods.context import SelectionContext

_LEAST = 1e-6


def cdpruner(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending."""
    relevance = relevance_to_text(ctx)
    if ctx.options.get("relevance") == "opposite":
        relevance = -relevance
    quality = unit_range(relevance, ctx.segments) + _LEAST
    index = dpp_select(ctx.features, quality, ctx.segments, ctx.keep, impl=ctx.impl)
    assert isinstance(index, Tensor)  # a pair only with return_order=True
    return index


def relevance_to_text(ctx: SelectionContext) -> Tensor:
    """fp32 `[n]`: mean cosine of each visual token to the text tokens of its prompt; 0 without."""
    text = normalize(ctx.text.float(), dim=-1)
    # The mean cosine is the product with the mean direction. Sample by sample, and as sums of
    # products: a matrix product might round differently in another batch, or under autocast.
    means = [part.sum(0) / max(1, len(part)) for part in text.split(ctx.text_segments.lengths)]
    relevance = ctx.features.new_empty(len(ctx.features), dtype=torch.float32)
    bounds = zip(ctx.sequences.samples, pairwise(ctx.segments.offsets), strict=True)
    for sample, (begin, end) in bounds:
        tokens = normalize(ctx.features[begin:end].float(), dim=-1)
        relevance[begin:end] = (tokens * means[sample]).sum(-1)
    return relevance
