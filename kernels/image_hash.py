"""A 64-bit hash of each picture, so that random picks follow the picture, not its place in a batch.

    mix64(a, i) = finalize(a + (i + 1) · 0x9E3779B97F4A7C15)          (splitmix64's finalizer)
    hash(image) = Σ_i mix64(bits of bfloat16(pixel_i), i)  +  mix64(grid packed, -1)       mod 2⁶⁴

with i the number of the value inside its image, row-major, the bits as an unsigned 16-bit integer
and the grid packed as t·2⁴⁰ + h·2²⁰ + w (0 where a model family has no grid). Pixels are rounded to
bfloat16 first, so that fp32 and bf16 inputs of one picture have the same hash. The arithmetic is on
integers only: every device gives the same hash, and nothing is read back. Source of the finalizer:
Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (constants of
Stafford's variant 13).
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as int64, products wrap around mod 2^64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
# Pixels hashed at once: on a CPU few enough for its caches, which more than halves the time; on
# other devices so many that the int64 scratch memory is about 32 MB.
_CHUNK, _CHUNK_CPU = 1 << 20, 1 << 16


def mix64(a: Tensor, i: Tensor) -> Tensor:
    """Hash int64 values `a`, each with its int64 number `i`, to int64; broadcasts."""
    z = ((i + 1) * _GOLDEN).add(a)
    high = torch.empty_like(z)  # in place from here on: memory traffic is what takes the time
    for shift, multiplier in zip((30, 27, 31), (*_MULTIPLIERS, None), strict=True):
        torch.bitwise_right_shift(z, shift, out=high)
        z ^= high.bitwise_and_((1 << (64 - shift)) - 1)  # the shift of unsigned integers
        if multiplier is not None:
            z *= multiplier
    return z


def image_hash(pixels: Tensor, grid: Tensor | None = None) -> Tensor:
    """Hash the images in one input of a vision tower.

    Args:
        pixels: `[images, ...]` floating point; or, with `grid`, `[patches, D]`, the patches of all
            images one after another.
        grid: `[images, 3]` integers, patches (t, h, w) of each image, or None.

    Returns:
        `[images]` int64 on the device of `pixels`.
    """
    lines = pixels.flatten(0, -2) if pixels.ndim > 1 else pixels[:, None]
    number, width = lines.shape
    device, images = lines.device, len(pixels if grid is None else grid)
    if grid is None:
        per_image = torch.full((images,), number // max(1, images), device=device)
        packed = torch.zeros_like(per_image)
    else:
        grid = grid.to(device, torch.int64)
        per_image = grid.prod(1)
        packed = (grid[:, 0] << 40) + (grid[:, 1] << 20) + grid[:, 2]
    image_of_line = torch.repeat_interleave(
        torch.arange(images, device=device), per_image, output_size=number
    )
    first = per_image.cumsum(0) - per_image
    line_in_image = torch.arange(number, device=device) - first[image_of_line]
    column = torch.arange(width, device=device)
    at_once = max(1, (_CHUNK_CPU if device.type == "cpu" else _CHUNK) // max(1, width))
    sums = []
    for part, line in zip(lines.split(at_once), line_in_image.split(at_once), strict=True):
        bits = part.to(torch.bfloat16).contiguous().view(torch.int16).long() & 0xFFFF
        sums.append(mix64(bits, line[:, None] * width + column).sum(1))
    total = sums[0] if len(sums) == 1 else torch.cat(sums)
    return mix64(packed, torch.full_like(packed, -1)).index_add(0, image_of_line, total)
