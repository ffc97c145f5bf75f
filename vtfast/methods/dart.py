"""DART: keep what is least like a few pivots, so that duplicates go first.

Pivots are tokens with large keys, by L1 norm: four of the picture and four of the text after it.
Pivot after pivot takes its share of the picture's tokens not yet taken, those of the lowest cosine
to it. Text pivots only steer the choice. Norms are of the keys of the layer before, after rotation,
over all key heads; cosines are of the hidden states entering the layer under the final norm, fp32.

Source: DART (arXiv 2502.11494) and what its code computes. Different here:

- k tokens are kept, whatever k is: the picture's min(4, k) pivots, and the rest in equal shares
  over all pivots, one more for each of the first (rest mod pivots). For k = 4 + 8q that is the
  official share, q for each. `official_budget=True` makes k such a number: 4 + 8·floor(k/8).
- pivots take their turns in reading order, the picture's first. The official order is that of a
  Python set.
- text means the sample's tokens outside any picture. Where fewer than four follow the picture, the
  first text before it makes up the number.
- ties go to the lowest position; a cosine that is not a number ranks last.
"""

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtfast.kernels.ragged import Ragged
from vtfast.kernels.topk_select import topk_select
from vtfast.methods.context import SelectionContext

_PIVOTS = 4  # of the picture, and as many of the text


def dart(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int64 ascending."""
    segments, sequences = ctx.segments, ctx.sequences
    norms = ctx.attention.keys.flatten(1).float().abs().sum(1)
    own = Ragged.from_lengths([min(_PIVOTS, k) for k in ctx.keep], segments.device)
    own_pivots = topk_select(norms[sequences.visual], segments, own.lengths, impl=ctx.impl).long()
    text, text_pivots = _text_pivots(ctx, norms)

    rows = torch.cat((own.pad(sequences.visual[own_pivots], 0), text.pad(text_pivots, 0)), 1)
    pivots = normalize(sequences.norm(sequences.hidden[rows]).float(), dim=-1)  # [segments, P, D]
    tokens = normalize(sequences.norm(ctx.features).float(), dim=-1)
    likeness = (segments.pad(tokens, 0) @ pivots.mT)[segments.cells]  # [n, P]
    distance = torch.nan_to_num(-likeness, nan=-torch.inf)

    taken = torch.zeros(segments.total, dtype=torch.bool, device=segments.device)
    taken[own_pivots] = True
    shares = [_shares(*counts) for counts in zip(ctx.keep, own.lengths, text.lengths, strict=True)]
    for pivot in range(rows.shape[1]):
        share = [of_segment[pivot] for of_segment in shares]
        if any(share):
            scores = distance[:, pivot].masked_fill(taken, torch.nan)  # NaN ranks below everything
            taken[topk_select(scores, segments, share, impl=ctx.impl).long()] = True
    return torch.nonzero_static(taken, size=sum(ctx.keep))[:, 0]


def _shares(keep: int, own: int, text: int) -> list[int]:
    """Tokens each pivot takes; with fewer than four pivots of its own a picture has no rest."""
    each, more = divmod(keep - own, max(1, own + text))
    shares = [each + (i < more) for i in range(own + text)]
    return shares + [0] * (2 * _PIVOTS - len(shares))


def _text_pivots(ctx: SelectionContext, norms: Tensor) -> tuple[Ragged, Tensor]:
    """Rows of each segment's text pivots, ascending, and how they are cut into segments."""
    segments, sequences = ctx.segments, ctx.sequences
    counts = list(sequences.lengths)  # of text, in each sample
    for sample, length in zip(sequences.samples, segments.lengths, strict=True):
        counts[sample] -= length
    is_text = torch.ones(sum(sequences.lengths), dtype=torch.bool, device=segments.device)
    is_text[sequences.visual] = False
    text = torch.nonzero_static(is_text, size=sum(counts))[:, 0]

    ends = list(accumulate(counts))
    candidates = torch.cat([text[ends[b] - counts[b] : ends[b]] for b in sequences.samples])
    cut = Ragged.from_lengths([counts[b] for b in sequences.samples], segments.device)
    first = segments.cu_seqlens[:-1].clamp(max=segments.total - 1).long()  # of an empty one: any
    before = candidates < sequences.visual[first][cut.cells[0]]
    chosen = Ragged.from_lengths([min(_PIVOTS, n) for n in cut.lengths], segments.device)
    index = topk_select(
        norms[candidates].masked_fill(before, torch.nan), cut, chosen.lengths, impl=ctx.impl
    )
    return chosen, candidates[index]
