"""How much of a padded batch is padding while a plan runs."""

from collections.abc import Iterable

from vtfast.methods.segments import Segment, lengths_after
from vtfast.methods.stage import Stage


def padding(
    stages: Iterable[Stage], lengths: list[int], segments: list[Segment], longest: int
) -> float:
    """Share of the tokens of a padded batch, summed over layers, that no sample needs.

    lengths: tokens of each sample. segments: their images, clips or frames. longest: columns of the
    batch until a stage drops a token.
    """
    held = padded = 0
    dropped = False
    for stage in stages:
        dropped = dropped or stage.drops(segments)
        after = stage.shorten(segments)
        lengths = lengths_after(lengths, stage.budgeted(segments), after)
        segments, layers = after, stage.until - stage.layer
        held += layers * sum(lengths)
        padded += layers * len(lengths) * (max(lengths) if dropped else longest)
    return 1 - held / padded
