"""VisionZip, dominant tokens: keep the tokens that the vision tower attends to most.

They are the k largest of `ctx.vision_scores`, ties to the lowest row.

Source: VisionZip (CVPR 2025, arXiv 2412.04467). Different here: only its dominant tokens are kept.
The rest of its budget goes to averages of the other tokens, which vtfast, keeping tokens as they
are, does not make. The class token is never among the tokens kept, unless it is one of the model's
visual tokens.
"""

from torch import Tensor

from vtfast.kernels.topk_select import topk_select
from vtfast.methods.context import SelectionContext


def visionzip(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending."""
    return topk_select(ctx.vision_scores, ctx.segments, ctx.keep, impl=ctx.impl)
