"""How much of a padded batch is padding while a plan runs."""

from collections.abc import Iterable

from vtfast.methods.segments import Segment
from vtfast.methods.stage import Stage


def padding(
    stages: Iterable[Stage], lengths: list[int], segments: list[Segment], longest: int
) -> float:
    """Share of the tokens of a padded batch, summed over layers, that no sample needs.

    lengths: tokens of each sample. segments: their images, clips or frames. longest: columns of the
    batch until a stage drops a token.
    """
    held = padded = 0
    lengths, dropped = list(lengths), False
    for stage in stages:
        dropped = dropped or stage.drops(segments)
        after = stage.shorten(segments)
        for had, has in zip(stage.budgeted(segments), after, strict=True):
            lengths[had.sample] -= had.left - has.left
        segments, layers = after, stage.until - stage.layer
        held += layers * sum(lengths)
        padded += layers * len(lengths) * (max(lengths) if dropped else longest)
    return 1 - held / padded
