"""The finalizer of splitmix64 in plain PyTorch: 64-bit hashes that every device computes alike.

    mix64(a, i) = finalize(a + (i + 1) · GOLDEN)       mod 2⁶⁴

Integers only. They are held in int64, where sums and products wrap around as those of unsigned
integers do. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014 (constants of Stafford's variant 13); re-derived.
"""

import torch

GOLDEN = 0x9E3779B97F4A7C15  # the odd number nearest to 2⁶⁴ / golden ratio
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# Values hashed at once: on a CPU few enough for its caches, which more than halves the time; on
# other devices so many that the int64 scratch memory is about 32 MB.
_CHUNK, _CHUNK_CPU = 1 << 20, 1 << 16
_NAN, _INF = float("nan"), float("inf")


def mix64(a: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    """Hash int64 values `a`, each with its int64 number `i`, to int64; broadcasts."""
    return finalize_(((i + 1) * signed(GOLDEN)).add(a))


def finalize_(z: torch.Tensor) -> torch.Tensor:
    """Mix the bits of an int64 tensor, in place: memory traffic is what takes the time."""
    high = torch.empty_like(z)
    for shift, multiplier in zip((30, 27, 31), (*MULTIPLIERS, None), strict=True):
        torch.bitwise_right_shift(z, shift, out=high)
        z ^= high.bitwise_and_((1 << (64 - shift)) - 1)  # the shift of unsigned integers
        if multiplier is not None:
            z *= signed(multiplier)
    return z


def signed(word: int) -> int:
    """The int64 that is congruent to this integer modulo 2⁶⁴."""
    return (word + 2**63) % 2**64 - 2**63


def hash_lines(lines: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Σ_j mix64(bits of bfloat16(lines[l, j]), number[l] · width + j) of every line l.

    lines: `[lines, width]`, real numbers. number: `[lines]` int64. Returns `[lines]` int64.
    """
    width, device = lines.shape[1], lines.device
    # (i + 1) · GOLDEN of every value is the sum of a term of its line and one of its column.
    of_line = number * signed(width * GOLDEN)
    of_column = torch.arange(1, width + 1, device=device).mul_(signed(GOLDEN))
    at_once = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK) // max(1, width))
    sums = []
    for part, first in zip(lines.split(at_once), of_line.split(at_once), strict=True):
        bits = part.to(torch.bfloat16).nan_to_num(_NAN, _INF, -_INF).view(torch.uint16)
        sums.append(finalize_(bits.long().add_(of_column).add_(first[:, None])).sum(1))
    return sums[0] if len(sums) == 1 else torch.cat(sums)
