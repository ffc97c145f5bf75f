"""Hash the pixels of every picture, so that random picks follow the picture, not its place.

    mix64(a, i) = finalize(a + (i + 1) · GOLDEN)                    (splitmix64's finalizer)
    hash(picture) = Σ_i mix64(bits of bfloat16(pixel_i), i)  +  mix64(grid packed, -1)     mod 2⁶⁴

with i the number of the value inside its picture, row-major, the bits as an unsigned 16-bit integer
and the grid packed as t·2⁴⁰ + h·2²⁰ + w (0 where a model family has no grid). Pixels are rounded to
bfloat16 first, so that fp32 and bf16 pixels of one picture have the same hash.

One launch for all pictures of a batch: a program hashes a block of values, whichever pictures they
belong to, and adds what it has of a picture to that picture's hash. The atomics are on integers, so
their order changes nothing, and every device gives the same hash. Traffic: the pixels once.
Limits: floating point of 16 to 64 bits; "auto" falls back to PyTorch for anything else.
"""

import torch

from . import reference
from ._checks import INDEX_DTYPES, REFERENCE_DTYPES, check_has_rows, check_impl, check_tensor
from ._launch import on_device_of, register, tl, triton, use_triton
from ._mix64 import GOLDEN, MULTIPLIERS

_OP = "image_hash"
_BLOCK = 4096  # values of a program, 32 a thread: about 45 instructions a value; 8 warps take 54
_WARPS = 4
_IMAGES = 32  # grids looked at together: a warp's lanes

_GOLDEN = tl.constexpr(GOLDEN)
_FIRST, _SECOND = (tl.constexpr(multiplier) for multiplier in MULTIPLIERS)


@triton.jit
def _finalize(z):
    """Mix the bits of uint64 `z`."""
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    return z ^ (z >> 31)


@triton.jit
def _bfloat16_bits(x):
    """`x` rounded to bfloat16, to nearest even, as uint64; integers only, as on every device."""
    if x.dtype == tl.bfloat16:
        word = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    else:
        word = x.to(tl.float32).to(tl.uint32, bitcast=True)
    word = tl.where((word & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, word)  # NaN
    return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).to(tl.uint64)


@triton.jit
def _grids(grid_ptr, image, mask):
    """t, h, w of these pictures, int64."""
    place = grid_ptr + image * 3
    t = tl.load(place, mask=mask, other=0).to(tl.int64)
    h = tl.load(place + 1, mask=mask, other=0).to(tl.int64)
    return t, h, tl.load(place + 2, mask=mask, other=0).to(tl.int64)


@triton.jit
def _first_image(grid_ptr, images, units, begin, IMAGES: tl.constexpr):
    """The first picture that does not end before place `begin`, and where it begins, in units."""
    image = tl.full([], 0, tl.int32)
    first = tl.full([], 0, tl.int64)
    before = tl.full([], 0, tl.int64)
    for some in range(0, images, IMAGES):
        number = some + tl.arange(0, IMAGES)
        t, h, w = _grids(grid_ptr, number, number < images)
        size = t * h * w * units
        end = before + tl.cumsum(size, 0)
        # Not one that begins here and is empty: its grid is still to be mixed in.
        passed = (end <= begin) & (end - size < begin) & (number < images)
        image += tl.sum(passed.to(tl.int32), 0)
        first += tl.sum(tl.where(passed, size, 0), 0)
        before += tl.sum(size, 0)
    return image, first


@triton.jit(do_not_specialize=["images", "units"])
def _image_hash_kernel(
    # pointers
    pixels_ptr,
    grid_ptr,  # None: all pictures have one size
    out_ptr,  # zeros
    # sizes
    images,
    units,  # of UNIT values: in a patch, or without grids in a picture
    # meta
    UNIT: tl.constexpr,  # values in 16 bytes, if all pictures begin at multiples of that; or 1
    BLOCK: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Grid (blocks of BLOCK values): a program hashes its block, picture by picture.

    Where blocks and pictures begin and end is counted in units.
    """
    begin = tl.program_id(0).to(tl.int64) * (BLOCK // UNIT)
    end = begin + BLOCK // UNIT
    if grid_ptr is None:
        image = (begin // units).to(tl.int32)
        first = begin // units * units
    else:
        image, first = _first_image(grid_ptr, images, units, begin, IMAGES)
    lane = tl.arange(0, BLOCK)
    lane_term = lane.to(tl.uint64) * _GOLDEN
    while (image < images) & (first < end):
        if grid_ptr is None:
            size = units.to(tl.int64)
            part = tl.full([], 0, tl.uint64)  # of a grid of zeros mix64 is 0
        else:
            t, h, w = _grids(grid_ptr, image, True)
            size = t * h * w * units
            packed = (t << 40) + (h << 20) + w
            part = tl.where(first >= begin, _finalize(packed.to(tl.uint64)), 0)
        low = (tl.maximum(first, begin) - begin).to(tl.int32) * UNIT
        high = (tl.minimum(first + size, end) - begin).to(tl.int32) * UNIT
        inside = (lane >= low) & (lane < high)
        x = tl.load(pixels_ptr + begin * UNIT + lane, mask=inside, other=0.0)
        # (i + 1) · GOLDEN, where i = begin - first + lane is the number of the value.
        start = ((begin - first) * UNIT + 1).to(tl.uint64) * _GOLDEN
        mixed = _finalize(_bfloat16_bits(x) + lane_term + start)
        part += tl.sum(tl.where(inside, mixed, 0), 0)
        tl.atomic_add(out_ptr + image, part.to(tl.int64), sem="relaxed")
        image += 1
        first += size


def _launch(pixels: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
    images = len(pixels if grid is None else grid)
    out = torch.zeros(images, dtype=torch.int64, device=pixels.device)
    values = pixels.numel()
    if images == 0 or (grid is None and values == 0):
        return out
    width = values // len(pixels) if values else 0  # of a patch, or of a picture
    # Masks whose bounds are multiples of 16 bytes, as the compiler sees, allow loads of 128 bits.
    unit = 16 // pixels.element_size()
    unit = unit if width % unit == 0 else 1
    with on_device_of(pixels):
        # Empty pictures may lie at the end of the values: some block has to begin there, or before.
        _image_hash_kernel[(values // _BLOCK + 1,)](
            pixels.contiguous(),
            None if grid is None else grid.contiguous(),
            out,
            images,
            width // unit,
            UNIT=unit,
            BLOCK=_BLOCK,
            IMAGES=_IMAGES,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return out


_image_hash = register(
    "image_hash(Tensor pixels, Tensor? grid) -> Tensor",
    _launch,
    lambda pixels, grid: pixels.new_empty(
        (pixels if grid is None else grid).shape[0], dtype=torch.int64
    ),
)


def image_hash(
    pixels: torch.Tensor, grid: torch.Tensor | None = None, *, impl: str = "auto"
) -> torch.Tensor:
    """Hash the pictures in one input of a vision tower.

    Args:
        pixels: `[images, ...]` fp32|fp16|bf16|fp64, any strides (what is not contiguous is copied);
            or, with `grid`, `[patches, D]`, the patches of all pictures one after another. "eager"
            takes any real dtype. Every NaN counts as the same one.
        grid: `[images, 3]` int32|int64 on the device of `pixels`: patches (t, h, w) of each
            picture, each in [0, 2^20), with as many in all pictures as `pixels` has. Values are not
            checked. None: all pictures have one size.
        impl: "auto" (Triton on CUDA tensors within the kernel's limits, eager elsewhere) | "eager"
            | "triton"; an explicit choice never falls back.

    Returns:
        `[images]` int64, the same on every device, alone and in a batch.

    Raises:
        ValueError: a rank, shape or device that does not fit, or impl="triton" for what the kernel
            cannot do.
        TypeError: a wrong type or dtype.
        RuntimeError: impl="triton" where Triton cannot run.

    Source: own; the finalizer is that of splitmix64 (Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014).

    >>> image_hash(torch.zeros(40, 1176), torch.tensor([[1, 4, 4], [1, 4, 6]])).shape
    torch.Size([2])
    """
    check_impl(_OP, impl)
    check_has_rows(_OP, "pixels", pixels)
    if pixels.is_complex():
        raise TypeError(f"{_OP}: pixels must be real numbers, got {pixels.dtype}; cast them first")
    if grid is not None:
        check_tensor(_OP, "pixels", pixels, ndim=2)
        check_tensor(_OP, "grid", grid, ndim=2, dtypes=INDEX_DTYPES, device=pixels.device)
        if grid.shape[1] != 3:
            raise ValueError(
                f"{_OP}: grid must be [images, 3], got shape {tuple(grid.shape)}; "
                "pass t, h, w of every picture"
            )
    why = "" if pixels.dtype in REFERENCE_DTYPES else f"the kernel does not take {pixels.dtype}"
    triton_runs = use_triton(_OP, impl, pixels.device, why_unsupported=why)
    with torch.no_grad():
        return _image_hash(pixels, grid) if triton_runs else reference.image_hash(pixels, grid)
