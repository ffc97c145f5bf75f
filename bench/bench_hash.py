"""Hashes of pictures, from which random picks follow.

Baselines: the same hash in PyTorch, a chunk of values at a time; and with the fewest launches, each
picture as a whole (those of one size together), which takes 16 bytes a value. The bound is reading
the pixels once; a copy of as many bytes, which reads and writes, stands beside it.
"""

import math
from collections.abc import Iterator

import torch
from harness import Case, Variant, compiled, main
from parity import exactly, image_hashes
from shapes import Workload, dtype_for, normal, workloads

from vtfast.kernels import reference
from vtfast.kernels._mix64 import mix64
from vtfast.ops import image_hash

SIDE, PATCH = 336, 1176  # pixels of a side in LLaVA-1.5; values of a patch in Qwen2.5-VL


def hash_of_values(pictures: torch.Tensor) -> torch.Tensor:
    """Of pictures `[B, values]` of one size, without grids."""
    bits = pictures.to(torch.bfloat16).view(torch.int16).long() & 0xFFFF
    return mix64(bits, torch.arange(bits.shape[1], device=bits.device)).sum(1)


def case(w: Workload, device: str, tiny: bool) -> Case:
    """LLaVA gets pictures of one size; Qwen patches, four for every token, and their grids."""
    dtype, side = dtype_for(device), 28 if tiny else SIDE
    if w.name.startswith("llava"):
        grids, shape = None, (len(w.lengths), 3, side, side)
    else:
        grids, shape = [(1, 2, 2 * n) for n in w.lengths], (4 * w.total, PATCH)

    def make(seed: int) -> tuple[torch.Tensor, ...]:
        pixels = normal(seed, *shape, device=device, dtype=dtype)
        return (pixels,) if grids is None else (pixels, torch.tensor(grids, device=device))

    def whole(pixels: torch.Tensor, grid: torch.Tensor | None = None) -> torch.Tensor:
        if grid is None:
            return hash_of_values(pixels.flatten(1))
        parts = pixels.split([math.prod(sizes) for sizes in grids])
        hashes = torch.cat([hash_of_values(part.flatten()[None]) for part in parts])
        t, h, w = grid.unbind(1)
        return hashes + mix64((t << 40) + (h << 20) + w, torch.full_like(t, -1))

    more = Variant("whole pictures, compiled", compiled(whole), "compiled")
    return Case(
        name=w.name,
        shape=f"{len(w.lengths)} pictures, {' x '.join(map(str, shape))}",
        dtype=dtype,
        make=make,
        variants=[
            Variant("in chunks", reference.image_hash, "eager"),
            Variant("whole pictures", whole, "fair"),
            Variant("memcpy of as many bytes", lambda pixels, *_: pixels.clone(), "note"),
            Variant("vtfast", image_hash, "vtfast"),
            *[more] * (w.name in ("llava b8", "qwen 4k")),
        ],
        gate=lambda inputs: exactly(image_hashes(inputs[0], grids)),
        nbytes=math.prod(shape) * dtype.itemsize,
    )


def cases(device: str, tiny: bool) -> Iterator[Case]:
    for w in workloads(tiny):
        yield case(w, device, tiny)


OPS = {"hash": cases}

if __name__ == "__main__":
    main(OPS, __doc__)
