"""Philox-4x32-10 in plain PyTorch: random words that every device computes alike.

Counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; re-derived
from the paper): a word is a pure function of key and counter, so the CPU, Triton's interpreter and
a GPU agree bit for bit. Words are held in int64, where a 32 x 32 bit product keeps all its 64 bits.
"""

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF


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
