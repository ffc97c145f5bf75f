"""Drop: keep no visual token at all from this layer on (VTW, arXiv 2405.05803)."""

import torch
from torch import Tensor

from vtfast.methods.context import SelectionContext


def drop(ctx: SelectionContext) -> Tensor:
    """No row numbers: an empty int32 tensor."""
    return torch.zeros(0, dtype=torch.int32, device=ctx.segments.device)
