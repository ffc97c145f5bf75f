"""Random: a uniform sample of each image's tokens, the same for the same picture and seed."""

from torch import Tensor

from vtfast.kernels.random_select import random_select
from vtfast.methods.context import SelectionContext


def random(ctx: SelectionContext) -> Tensor:
    """Row numbers of the kept tokens, int32 ascending.

    They depend only on seed, image hash, layer, image size and number kept: every device, batch and
    beam keeps the same tokens.
    """
    return random_select(
        ctx.segments,
        ctx.keep,
        seed=ctx.seed,
        image_hash=ctx.image_hash,
        stream=ctx.layer,
        impl=ctx.impl,
    )
