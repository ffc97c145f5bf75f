"""Make a `SelectionContext` by hand: random hidden states, and text wherever a test wants it."""

import itertools
from collections.abc import Sequence

import torch

from vtfast.kernels.ragged import Ragged
from vtfast.methods import Attention, SelectionContext, Sequences

D, HEADS = 8, 2


def context(
    samples: Sequence[Sequence[int | tuple[int, ...]]],
    keep: Sequence[int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    grids: Sequence[tuple[int, ...]] | None = None,
    **options: object,
) -> SelectionContext:
    """A context whose samples are given by their parts: n text tokens as `n`, a picture as `(n,)`.

    Hidden states, keys and vision scores are random; the norm doubles every second channel.
    """
    rows, visual, lengths, owners = 0, [], [], []
    for number, parts in enumerate(samples):
        start = rows
        for part in parts:
            size = part[0] if isinstance(part, tuple) else part
            if isinstance(part, tuple):
                visual += range(rows, rows + size)
                owners.append((number, size))
            rows += size
        lengths.append(rows - start)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, D, generator=generator).to(dtype)
    keys = torch.randn(rows, HEADS, D // HEADS, generator=generator).to(dtype)
    last = torch.tensor(lengths).cumsum(0) - 1
    sizes = [size for _, size in owners]
    vision_scores = torch.rand(sum(sizes), generator=generator)
    sequences = Sequences(
        hidden, torch.tensor(visual), tuple(lengths), tuple(n for n, _ in owners), doubled
    )
    return SelectionContext(
        layer=2,
        segments=Ragged.from_lengths(sizes, "cpu"),
        keep=tuple(keep),
        parts=tuple((grid,) for grid in grids or [(1, 1, n) for n in sizes]),
        sequences=sequences,
        seed=0,
        options=options,
        impl="auto",
        _image_hash=lambda: torch.arange(len(sizes)),
        _attention=lambda: Attention(keys[last], keys, 1.0),
        _vision_scores=lambda: vision_scores,
        _reads=("scores", "text", "vision_scores"),
    )


def doubled(x: torch.Tensor) -> torch.Tensor:
    """A stand-in for the final norm. It changes directions, so that a method without it fails."""
    return x * torch.tensor([1.0, 2.0]).repeat(D // 2).to(x.dtype)


def picks(index: torch.Tensor, ctx: SelectionContext) -> list[list[int]]:
    """Positions picked in each segment, counted from its first token."""
    offsets = ctx.segments.offsets
    return [
        [row - a for row in index.tolist() if a <= row < b] for a, b in itertools.pairwise(offsets)
    ]
