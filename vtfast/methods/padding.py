"""How much of a padded batch is padding while a plan runs, and whether packing it pays."""

from collections.abc import Collection, Iterable

from vtfast.methods.segments import Segment, lengths_after
from vtfast.methods.stage import Stage

# Packing costs some 5 to 10 % of a decoding step that waits for the host (bench_host.py), and saves
# about the share of a prefill that would be padding.
_LEAST_PADDING = 1 / 16


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


def packing_pays(
    stages: Collection[Stage], lengths: list[int], segments: list[Segment], rows: int, longest: int
) -> tuple[bool, str]:
    """Whether a batch of so many rows is faster without padding, and why; the rest as in `padding`.

    Samples that are all alike need no padding: then packing has nothing to give, and transformers'
    own cache and attention cost the host less. Where they differ, the padded batch computes, reads
    and caches as many tokens for every sample as for the longest; packing pays from the share of
    these on that outweighs what it costs.
    """
    if not any(stage.drops(segments) for stage in stages):
        return False, "no stage drops a token"
    if len(lengths) > rows:
        return True, "rows hold several samples"
    share = padding(stages, lengths, segments, longest)
    said = f"{share:.0%} of a padded batch would be padding" if share else "samples are all alike"
    return share >= _LEAST_PADDING, said
