"""Top-k: keep the tokens that the prompt's last token attends to most.

Source: FastV (arXiv 2403.06764); the scores are `SelectionContext.scores`. In a forward over prompt
and answer the prompt ends where labels or `prompt_length=` say; without either, the last token of
the sample is taken for the prompt's, and the answer then chooses the tokens.
"""

from torch import Tensor

from vtfast.kernels.topk_select import topk_select
from vtfast.methods.context import SelectionContext


def topk(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending; ties go to the lowest row."""
    return topk_select(ctx.scores, ctx.segments, ctx.keep, impl=ctx.impl)
