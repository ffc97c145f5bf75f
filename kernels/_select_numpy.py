"""Random and top-k picks on CPU memory, by NumPy: bit for bit those of `reference`, in less time.

For a picture of 576 tokens a selection is all overhead: the reference calls 30 to 90 operators of
torch, at 1 to 5 µs each, and sorts all rows. Here a segment costs a partition, which finds the
threshold, and a compare; the rows of the mask are ascending as they are. Only where values equal to
the threshold must be told apart is more needed: for random picks their second words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ._numpy import HAS_NUMPY, np
from ._philox import philox_4x32_numpy
from .ragged import Ragged

_SECOND_WORD, _MASK = 0x80000000, 0xFFFFFFFF
_ROWS_AT_ONCE = 2**16  # words drawn together, unless one segment has more: 32 bytes for each
_PLAIN = frozenset((torch.Tensor, int, type(None)))


def can_read(tensor: torch.Tensor, *others: torch.Tensor | int | None) -> bool:
    """Whether NumPy may read these arguments of an op, whose tensors are on one device.

    They must be plain CPU tensors, and nothing may trace, transform or count the operators of
    torch: it would not see what NumPy does.
    """
    return (
        HAS_NUMPY
        and not torch.compiler.is_compiling()
        and tensor.is_cpu
        and _PLAIN.issuperset(map(type, (tensor, *others)))
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )


def topk_select(scores: torch.Tensor, segments: Ragged, keep: Sequence[int]) -> torch.Tensor:
    """`reference.topk_select`."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    # Of negative scores the smallest win, and NaN, which NumPy orders last, loses.
    lost = np.negative(scores.numpy(force=True))
    parts = (lost[begin:end] for begin, end in pairwise(segments.offsets))
    return _smallest(parts, segments, keep, lambda _, part, k: _first_of_equal(part, k))


def random_select(
    segments: Ragged,
    keep: Sequence[int],
    seed: int | torch.Tensor,
    image_hash: torch.Tensor | None,
    stream: int | torch.Tensor,
) -> torch.Tensor:
    """`reference.random_select`."""
    seed, stream = int(seed), int(stream)
    hashes = range(len(segments)) if image_hash is None else image_hash.tolist()

    def by_second_word(segment: int, words: np.ndarray, k: int) -> np.ndarray:
        alone = slice(segment, segment + 1)
        drawn = _words(segments.lengths[alone], seed, hashes[alone], stream | _SECOND_WORD)
        return np.sort(np.lexsort((*drawn, words))[:k])  # stable: what is still equal, by row

    def words() -> Iterator[np.ndarray]:
        for group in _groups(segments.lengths):
            yield from _words(segments.lengths[group], seed, hashes[group], stream)

    return _smallest(words(), segments, keep, by_second_word)


def _groups(lengths: Sequence[int]) -> Iterator[slice]:
    """Consecutive segments whose words are drawn together."""
    first = rows = 0
    for number, length in enumerate(lengths):
        if rows and rows + length > _ROWS_AT_ONCE:
            yield slice(first, number)
            first, rows = number, 0
        rows += length
    if first < len(lengths):
        yield slice(first, len(lengths))


def _words(
    lengths: Sequence[int], seed: int, hashes: Sequence[int], stream: int
) -> list[np.ndarray]:
    """The words of each segment, uint32 `[n]`, with all bits inverted: the smallest win."""
    blocks = [(length + 3) // 4 for length in lengths]
    block = np.arange(max(blocks), dtype=np.uint32)
    halves = [(value & _MASK, value >> 32 & _MASK) for value in hashes]
    if len(lengths) == 1:
        low, high = halves[0]
    else:
        block = np.concatenate([block[:n] for n in blocks])
        low, high = np.repeat(np.array(halves, np.uint32).T, blocks, axis=1)
    words = np.invert(philox_4x32_numpy((block, low, high, stream), seed)).reshape(-1)
    starts = accumulate(blocks, initial=0)
    return [words[4 * start :][:length] for start, length in zip(starts, lengths, strict=False)]


def _smallest(
    parts: Iterable[np.ndarray],
    segments: Ragged,
    keep: Sequence[int],
    break_tie: Callable[[int, np.ndarray, int], np.ndarray],
) -> torch.Tensor:
    """Packed rows of the `keep[s]` smallest values of each segment, int32 and ascending.

    parts: the values of each segment. break_tie: segment, its values and how many to take → their
    positions, ascending; asked where more values than that are at most the threshold, or it is NaN.
    """
    index = np.empty(sum(keep), np.int32)
    done = 0
    for segment, (part, first, k) in enumerate(zip(parts, segments.offsets, keep, strict=False)):
        if not k:
            continue
        threshold = np.partition(part, k - 1)[k - 1]
        rows = (part <= threshold).nonzero()[0]
        if len(rows) != k:
            rows = break_tie(segment, part, k)
        index[done : done + k] = rows + first
        done += k
    return torch.from_numpy(index)


def _first_of_equal(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k smallest values, ascending: of equal ones the first, and NaN last."""
    threshold = np.partition(values, k - 1)[k - 1]
    if np.isnan(threshold):
        equal = np.isnan(values)
        taken = ~equal
    else:
        taken, equal = values < threshold, values == threshold
    taken[equal.nonzero()[0][: k - np.count_nonzero(taken)]] = True
    return taken.nonzero()[0]
