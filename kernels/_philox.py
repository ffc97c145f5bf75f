"""Philox-4x32-10 in plain PyTorch, and in NumPy: random words that every device computes alike.

Counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; re-derived
from the paper): a word is a pure function of key and counter, so the CPU, Triton's interpreter and
a GPU agree bit for bit. A 32 x 32 bit product keeps all its bits in the 64 that words are held in.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from ._numpy import np

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF

# Where a uint64 that NumPy sees as two uint32 has its halves.
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)


def philox_4x32(counter: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Encrypt 128-bit counters under a 64-bit key.

    counter: `[4, ...]` int64, words c0…c3 in [0, 2^32).
    seed: `[1]` int64, any value; the low half is key word 0, the high half key word 1.
    Returns four random words per counter, `[4, ...]` int64 in [0, 2^32).
    """
    per_pair = (2, *[1] * (counter.ndim - 1))
    multipliers = _constant(_MULTIPLIERS, seed).view(per_pair)
    key = torch.cat([seed, seed >> 32])  # the sums below are taken modulo 2^32
    rounds = torch.arange(_ROUNDS, device=seed.device)[:, None]
    round_keys = (key + rounds * _constant(_WEYL, seed)) & _MASK

    even, odd = counter[0::2], counter[1::2]  # (c0, c2), (c1, c3)
    for round_key in round_keys:
        # The product wraps modulo 2^64, so both of its halves are exact.
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_and_(_MASK)
        even = even.bitwise_xor_(odd).bitwise_xor_(round_key.view(per_pair))
        odd = product.bitwise_and_(_MASK)
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def _constant(words: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Two words on `like`'s device, written by fills: a copy from the host could stall CUDA."""
    return torch.stack([torch.full_like(like[0], word) for word in words])


def philox_4x32_numpy(counter: Sequence[Any], seed: int) -> np.ndarray:
    """`philox_4x32` on CPU memory, as uint32: counters of four `[n]` to words `[n, 4]`.

    counter: words c0…c3, each `[n]` or, but not c0, an int.

    A call on a small array costs NumPy a quarter of what it costs torch. Most of that is overhead,
    and least on contiguous arrays, so both products of a round are one array; and what they are
    multiplied by changes places every round, where the cipher crosses the products.
    """
    c0, c1, c2, c3 = counter
    n = len(c0)
    m0, m1 = _MULTIPLIERS
    constants = np.repeat(np.array([m0, m1, m0], np.uint64), n)
    multipliers = (constants[: 2 * n], constants[n:]) * (_ROUNDS // 2)

    even = np.empty(2 * n, np.uint64)  # (c0, c2), in odd rounds (c2, c0)
    even[:n], even[n:] = c0, c2
    even_words = even.view(np.uint32)[_LOW::2]
    product = np.empty_like(even)
    low, high = (product.view(np.uint32)[half::2] for half in (_LOW, _HIGH))
    crossed = low.reshape(2, n)[::-1]
    keyed = np.empty(2 * n, np.uint32)  # (c3, c1), in odd rounds (c1, c3), with the round key
    odd = halves = keyed.reshape(2, n)
    halves[0], halves[1] = c3, c1
    for key, multiplier in zip(_round_keys(seed), multipliers, strict=True):
        np.bitwise_xor(odd, key, halves)
        np.multiply(even, multiplier, product)
        np.bitwise_xor(high, keyed, even_words)
        odd = crossed

    words = np.empty((n, 4), np.uint32)
    words[:, 0], words[:, 2] = even_words[:n], even_words[n:]
    words[:, 3], words[:, 1] = odd
    return words


def _round_keys(seed: int) -> np.ndarray:
    """uint32 `[rounds, 2, 1]`: for (c3, c1) in even rounds, for (c1, c3) in odd ones."""
    low, high = [seed & _MASK], [seed >> 32 & _MASK]
    keys = _key_steps() + np.array([[high, low], [low, high]], np.uint32)  # modulo 2^32
    return keys.reshape(_ROUNDS, 2, 1)


@cache
def _key_steps() -> np.ndarray:
    """What the rounds add to the halves of the seed, which change places every round."""
    steps = np.outer(range(_ROUNDS), _WEYL).astype(np.uint32).reshape(-1, 2, 2, 1)
    steps[:, 0] = steps[:, 0, ::-1]
    return steps
