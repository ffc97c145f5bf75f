"""DART: keep the tokens least similar to a few pivot tokens, so that duplicates go first.

Pivots are tokens whose keys have a large L1 norm: four of the picture and four of the text after
it. One pivot after the other takes an equal share of the tokens to keep: tokens of the picture that
no pivot has taken yet, with the lowest cosine to this pivot. Text pivots do not count as tokens
kept. Norms are of the keys of the layer before, after rotation, over all key heads; cosines are of
the hidden states entering the layer, under the model's final norm, in fp32.

Source: DART (arXiv 2502.11494) and what its code computes. Different here:

- Exactly k tokens are kept, for every k: the picture's min(4, k) pivots, and the rest in equal
  shares over all pivots, where the first (rest mod pivots) take one more. For k = 4 + 8q each share
  is q, as in the official code. `official_budget=True` rounds k to such a number: 4 + 8·floor(k/8).
- Pivots take their shares in reading order, the picture's first. The official order is that of a
  Python set.
- Text means the sample's tokens outside any picture. If fewer than four follow the picture, the
  first text tokens before it are used too.
- Ties go to the lowest position; a cosine that is NaN ranks last.

In a forward over prompt and answer the prompt ends where labels or `prompt_length=` say; without
either, the answer counts as text after the picture. Norms after rotation depend on positions, so a
sample with other `position_ids` (left padding without them) may keep other tokens.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtfast.kernels.ragged import Ragged
from vtfast.kernels.topk_select import topk_select
from vtfast.methods.context import SelectionContext

_PIVOTS = 4  # of the picture, and as many of the text
_MAX_BYTES = 2**25  # of tokens normalised at once; a few temporary tensors are as large


def dart(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int64 ascending."""
    segments, sequences = ctx.segments, ctx.sequences
    norms = ctx.key_norms
    own = Ragged.from_lengths([min(_PIVOTS, k) for k in ctx.keep], segments.device)
    own_pivots = topk_select(norms[sequences.visual], segments, own.lengths, impl=ctx.impl).long()
    text, text_pivots = _text_pivots(ctx, norms)

    rows = torch.cat((own.pad(sequences.visual[own_pivots], 0), text.pad(text_pivots, 0)), 1)
    distance = torch.nan_to_num(-_cosines(ctx, rows), nan=-torch.inf)

    taken = torch.zeros(segments.total, dtype=torch.bool, device=segments.device)
    taken.index_fill_(0, own_pivots, True)  # `[…] = True` would wait for a GPU
    shares = [_shares(*counts) for counts in zip(ctx.keep, own.lengths, text.lengths, strict=True)]
    for pivot in range(rows.shape[1]):
        share = [of_segment[pivot] for of_segment in shares]
        if any(share):
            scores = distance[:, pivot].masked_fill(taken, torch.nan)  # NaN ranks below everything
            most = topk_select(scores, segments, share, impl=ctx.impl).long()
            taken.index_fill_(0, most, True)
    return torch.nonzero_static(taken, size=sum(ctx.keep))[:, 0]


@torch.no_grad()
def _cosines(ctx: SelectionContext, pivots: Tensor) -> Tensor:
    """Cosine of every token to the pivots of its segment, fp32 `[n, P]`.

    pivots: rows `[segments, P]` in the sequences. Tokens are normalised a part at a time, because
    in fp32 all of them, padded, could take much more memory than the sequences themselves.
    """
    hidden, norm = ctx.sequences.hidden, ctx.sequences.norm
    cosines = hidden.new_empty(ctx.segments.total, pivots.shape[1], dtype=torch.float32)
    at_once = max(1, _MAX_BYTES // (4 * hidden.shape[1]))
    for of_segment, (begin, end) in zip(pivots, pairwise(ctx.segments.offsets), strict=True):
        towards = normalize(norm(hidden[of_segment]).float(), dim=-1)
        for first in range(begin, end, at_once):
            rows = slice(first, min(first + at_once, end))
            tokens = normalize(norm(ctx.features[rows]).float(), dim=-1)
            torch.mm(tokens, towards.T, out=cosines[rows])  # autocast leaves `out=` alone
    return cosines


def _shares(keep: int, own: int, text: int) -> list[int]:
    """How many tokens each pivot takes; the rest is 0 if the picture has fewer than four pivots."""
    each, more = divmod(keep - own, max(1, own + text))
    shares = [each + (i < more) for i in range(own + text)]
    return shares + [0] * (2 * _PIVOTS - len(shares))


def _text_pivots(ctx: SelectionContext, norms: Tensor) -> tuple[Ragged, Tensor]:
    """How many text pivots each segment has, and their rows in the sequences, ascending."""
    segments, sequences = ctx.segments, ctx.sequences
    of_samples = sequences.text.split(ctx.text_segments.lengths)
    candidates = torch.cat([of_samples[b] for b in sequences.samples])
    counts = [len(of_samples[b]) for b in sequences.samples]
    of_segment = Ragged.from_lengths(counts, segments.device)
    first = segments.cu_seqlens[:-1].clamp(max=segments.total - 1).long()  # if empty: any
    before = candidates < sequences.visual[first][of_segment.cells[0]]
    chosen = Ragged.from_lengths([min(_PIVOTS, n) for n in of_segment.lengths], segments.device)
    scores = norms[candidates].masked_fill(before, torch.nan)  # so that text before ranks last
    return chosen, candidates[topk_select(scores, of_segment, chosen.lengths, impl=ctx.impl)]
