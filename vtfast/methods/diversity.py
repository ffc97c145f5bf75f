"""Diversity: keep tokens that are far from one another in cosine distance, picked greedily.

Source: DivPrune (arXiv 2503.02175); see `vtfast.ops.diversity_select` for what differs.
"""

from torch import Tensor

from vtfast.kernels.diversity_select import diversity_select
from vtfast.methods.context import SelectionContext


def diversity(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending."""
    index = diversity_select(ctx.features, ctx.segments, ctx.keep, impl=ctx.impl)
    assert isinstance(index, Tensor)  # a pair only with return_order=True
    return index
