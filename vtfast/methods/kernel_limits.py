"""What `impl="triton"` cannot do in a model, and whether Triton's kernels run there at all."""

from collections.abc import Iterable

import torch

from vtfast.errors import InputError, StateError
from vtfast.kernels._launch import use_triton
from vtfast.kernels._online_softmax import why_unsupported_heads
from vtfast.methods.segments import Segment
from vtfast.methods.stage import Stage


def why_unsupported(
    stages: Iterable[Stage], impl: str, path: str, weight: torch.Tensor, head_size: int
) -> str | None:
    """Why Triton's kernels cannot attend in a model; "" if they can, None where ops run in PyTorch.

    Refuses what an explicit impl="triton" cannot do there. weight: of the model's device and dtype.
    """
    try:
        if not use_triton("vtfast.patch", impl, weight.device):
            return None
    except RuntimeError as error:
        raise StateError(str(error)) from None
    heads = weight.dtype, head_size
    in_attention = why_unsupported_heads(*heads)
    whys = [stage.method.why_unsupported(*heads) for stage in stages]
    why = next(filter(None, [*whys, path == "packed" and in_attention]), None)
    if why and impl == "triton":
        raise InputError(f'impl="triton": {why}; patch with impl="auto"')
    return in_attention


def check(
    stages: Iterable[Stage],
    segments: list[Segment],
    gradients: bool,
    dtype: torch.dtype,
    head_size: int,
) -> None:
    """Refuse what impl="triton" cannot do with a chunk of these images."""
    if gradients:
        raise InputError(
            'impl="triton": its kernels have no backward and gradients are enabled; call under '
            'torch.no_grad(), or patch with impl="auto"'
        )
    for stage in stages:
        if why := stage.method.why_unsupported(dtype, head_size):
            raise InputError(f'impl="triton": {why}; patch with impl="auto"')
        longest = max((s.left for s in stage.budgeted(segments)), default=0)
        limit = stage.method.kernel_limit
        if limit is not None and longest > limit:
            raise InputError(
                f'impl="triton": a picture brings {longest} visual tokens to layer {stage.layer}, '
                f'whose selection kernel takes {limit}; shrink it, or patch with impl="auto"'
            )
        segments = stage.shorten(segments)
