"""VisPruner: keep the tokens that the vision tower attends to most, and others unlike one another.

Of k tokens floor(k/2) are the largest of `ctx.vision_scores`. Of the rest duplicates are removed
until there are as many as wanted. They stand in a row, at first in descending order of scores, and
again and again

    each token at an even place is compared with all at odd places, by the largest cosine
    of those at even places the eight most similar go (or fewer, if fewer are too many)
    the others at even places come first from then on, the most similar before, then the odd places

Source: VisPruner (ICCV 2025, arXiv 2412.01818), with its share of important tokens at one half, and
what its code computes. Different here: cosines are those of the hidden states entering the layer
(at layer 0 the projected features) and not of the tower's features before the projector. Equal
scores are ordered by position, equal similarities by place, and NaN ranks lowest.

Cost: 4 n² bytes for the cosines of a picture of n tokens and (n - k) / 8 rounds, each about ten
launches on a GPU; there is no kernel of its own.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtfast.methods.context import SelectionContext

_AT_ONCE = 8  # tokens removed between two comparisons


def vispruner(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int64 ascending."""
    scores = ctx.vision_scores.masked_fill(ctx.vision_scores.isnan(), -torch.inf)
    kept = []
    for (begin, end), keep in zip(pairwise(ctx.segments.offsets), ctx.keep, strict=True):
        order = scores[begin:end].sort(descending=True, stable=True).indices
        important = keep // 2
        rest = order[important:]
        tokens = normalize(ctx.features[begin:end].float(), dim=-1)[rest]
        diverse = rest[_without_duplicates(tokens, keep - important)]
        kept.append(torch.cat((order[:important], diverse)).sort().values + begin)
    return torch.cat(kept)


def _without_duplicates(tokens: Tensor, keep: int) -> Tensor:
    """Which of these unit vectors [n, D] are left when duplicates are removed, int64."""
    left = torch.arange(len(tokens), device=tokens.device)
    if keep in (0, len(left)):
        return left[:keep]
    with torch.autocast(tokens.device.type, enabled=False):
        cosines = torch.nan_to_num(tokens @ tokens.T, nan=-torch.inf)
    while (more := len(left) - keep) > 0:
        even, odd = left[::2], left[1::2]
        similar = cosines.index_select(0, even).index_select(1, odd).amax(1)
        order = similar.sort(descending=True, stable=True).indices
        left = torch.cat((even[order[min(_AT_ONCE, more) :]], odd))
    return left
