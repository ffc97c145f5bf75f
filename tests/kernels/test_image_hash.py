"""`image_hash`: 64 bits of every picture, from Python integers, bit for bit."""

import math
import re

import oracles
import pytest
import torch
from devices import DEVICE
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import fenced_rows, refusal

from vtfast.kernels import _mix64
from vtfast.kernels import image_hash as module
from vtfast.kernels._checks import INDEX_DTYPES, REFERENCE_DTYPES
from vtfast.kernels.image_hash import image_hash

pytestmark = pytest.mark.usefixtures("poisoned_memory", "fenced_memory")
each_dtype = pytest.mark.parametrize("dtype", REFERENCE_DTYPES, ids=str)
BLOCK = module._BLOCK


def fresh(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cpu").to(dtype)
    return x.to(torch.get_default_device())


def of_words(words, device=None):
    """fp32 numbers of these bits."""
    words = torch.tensor(words, device="cpu").int().view(torch.float32)
    return words.to(device or torch.get_default_device())


def expected(pixels, grids=None):
    """The hashes by Python integers."""
    words = (pixels.cpu().float().contiguous().view(torch.int32).long() & oracles.MASK).flatten(1)
    if grids is None:
        return [oracles.image_hash(picture) for picture in words.tolist()]
    parts = words.split([math.prod(grid) for grid in grids])
    return [
        oracles.image_hash(part.flatten().tolist(), grid)
        for part, grid in zip(parts, grids, strict=True)
    ]


def check(pixels, grids=None, *, impl, index=torch.int64):
    grid = None if grids is None else torch.tensor(grids, dtype=index).view(-1, 3)
    hashes = image_hash(pixels, grid, impl=impl)
    assert (hashes.dtype, hashes.device.type) == (torch.int64, pixels.device.type)
    assert hashes.tolist() == expected(pixels if pixels.ndim > 1 else pixels[:, None], grids)


# -- pictures of one size --------------------------------------------------------------------------


@each_dtype
def test_gives_what_python_integers_give(impl, dtype):
    check(fresh(2, 3, 40, 50, dtype=dtype), impl=impl)


@pytest.mark.parametrize(
    "shape",
    [
        *((1, 1), (3,), (2, 5), (0, 3, 8, 8), (2, 0), (9, 3, 7)),
        *((1, BLOCK - 1), (1, BLOCK), (1, BLOCK + 1), (2, BLOCK), (3, BLOCK + 4), (300, 40)),
    ],
    ids=str,
)
def test_pictures_of_any_shape_have_hashes(impl, shape):
    """Features may be passed instead of pixels, and some kinds of input may be absent."""
    check(fresh(*shape), impl=impl)


def test_a_picture_hashed_in_parts_has_the_hash_of_the_whole():
    check(fresh(2, 3, 150, 160), impl="eager")
    assert _mix64._CHUNK_CPU < 3 * 150 * 160


def test_a_picture_has_the_same_hash_alone_and_in_a_batch(impl):
    pixels = fresh(5, 3, 40, 50)
    alone = torch.cat([image_hash(picture[None], impl=impl) for picture in pixels])
    assert torch.equal(image_hash(pixels, impl=impl), alone)


def test_a_hash_depends_on_the_order_of_the_values(impl):
    pixels = fresh(1, 3, 8, 8)
    assert image_hash(pixels, impl=impl).item() != image_hash(pixels.flip(-1), impl=impl).item()


# -- pictures of different sizes -------------------------------------------------------------------

GRIDS = [
    pytest.param([(1, 4, 4), (2, 2, 6)], 24, id="two"),
    pytest.param([(1, 1, 1)], 1, id="one value"),
    pytest.param([], 24, id="no picture"),
    pytest.param([(0, 4, 4), (1, 0, 7)], 24, id="no patch"),
    pytest.param([(1, 2, 3), (3, 1, 2)], 0, id="patches of nothing"),
    pytest.param([(0, 1, 2), (1, 2, 2), (5, 0, 1), (0, 0, 0), (1, 1, 1), (1, 0, 1)], 8, id="empty"),
    pytest.param([(1, 1, 512), (0, 3, 4), (1, 1, 1), (1, 2, 0)], 8, id="an edge between two"),
    pytest.param([(1, 1, 512), (0, 3, 4)], 8, id="empty at the end"),
    pytest.param([(1, 1, 1)] * 70, 7, id="more pictures than lanes"),
    pytest.param([(1, 16, 40), (1, 1, 1), (1, 20, 30)], 12, id="several blocks"),
    pytest.param([(1, 3, 5), (1, 9, 40)], 21, id="patches of odd sizes"),
    pytest.param([(2**20 - 1, 2**20 - 1, 0), (0, 2**20 - 1, 1)], 4, id="the largest grids"),
]


@pytest.mark.parametrize(("grids", "width"), GRIDS)
def test_grids_cut_the_patches_and_are_mixed_in(impl, grids, width):
    check(fresh(sum(map(math.prod, grids)), width), grids, impl=impl)


@each_dtype
@pytest.mark.parametrize("index", INDEX_DTYPES, ids=str)
def test_grids_of_either_dtype_with_pixels_of_any(impl, dtype, index):
    check(fresh(340, 16, dtype=dtype), [(1, 20, 3), (2, 7, 20)], impl=impl, index=index)


def test_a_hash_depends_on_the_grid_and_not_on_the_values_alone(impl):
    pixels = torch.zeros(24, 8)
    tall, wide = (image_hash(pixels, torch.tensor([g]), impl=impl) for g in ((1, 6, 4), (1, 4, 6)))
    assert tall.item() != wide.item()


@examples(80)
@given(
    st.lists(st.tuples(*[st.integers(0, n) for n in (2, 5, 5)]), max_size=40),
    st.sampled_from([1, 4, 7, 8, 24]),
    st.sampled_from(REFERENCE_DTYPES),
    st.integers(0, 99),
)
def test_the_kernel_finds_every_boundary(grids, width, dtype, seed):
    """In blocks of 128 values, which many pictures share or cross, and between fences of NaN."""
    pixels = fresh(sum(map(math.prod, grids)), width, dtype=dtype, seed=seed)
    grid = torch.tensor(grids, dtype=torch.int64, device=DEVICE).view(-1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 128)
        hashes = image_hash(fenced_rows(pixels, device=DEVICE), grid, impl="triton")
    assert hashes.tolist() == expected(pixels, grids)


# -- rounding --------------------------------------------------------------------------------------

# Zeros, infinities, NaN of every kind, subnormals, ties of even and odd, the largest number.
WORDS = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF80FFFF]
WORDS += [0x7FFFFFFF, 0xFFFFFFFF, 1, 0x80000001, 0x8000, 0x8001, 0x18000, 0x7FFFFF, 0x807F8000]
WORDS += [0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x3F807FFF, 0x3F808001, 0x7F7FFFFF]
WORDS += [0xFF7F8000, 0x7F7F7FFF, 0x3FFF8000, 0x3F80FFFF, 0x7FC12345]


def test_fp32_is_rounded_to_the_nearest_bfloat16_to_the_even_one_of_two(impl):
    check(of_words(WORDS)[:, None], impl=impl)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_rounded_so(impl, dtype):
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    check(bits.view(dtype)[None], impl=impl)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_fp64_is_rounded_to_fp32_first(impl):
    """As PyTorch does: 1 + 2⁻⁸ + 2⁻⁴⁰ becomes a tie, and then 1."""
    tie = torch.tensor([1 + 2**-8 + 2**-40, 3e38, -4e38, 2**-140, math.nan], dtype=torch.float64)
    check(tie[:, None], impl=impl)


def test_fp32_and_bf16_pixels_of_one_picture_have_one_hash(impl):
    pixels = fresh(1, 3, 20, 20)
    assert torch.equal(image_hash(pixels, impl=impl), image_hash(pixels.bfloat16(), impl=impl))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool], ids=str)
def test_integers_are_hashed_by_pytorch(dtype):
    pixels = torch.arange(96).view(2, 48).to(dtype)
    assert image_hash(pixels).tolist() == expected(pixels)


# -- views, gradients, launches, refusals ----------------------------------------------------------

VIEWS = [
    pytest.param(lambda: fresh(3, 8, 8).transpose(1, 2), id="transposed"),
    pytest.param(lambda: fresh(6, 9)[::2], id="every other picture"),
    pytest.param(lambda: fresh(4, 24)[:, 4:12], id="columns"),
    pytest.param(lambda: fresh(9).expand(3, 9), id="one picture repeated"),
    pytest.param(lambda: fresh(65)[1:].view(2, 32), id="at an odd address"),
]


@pytest.mark.parametrize("view", VIEWS)
def test_reads_any_strides(impl, view):
    check(view(), impl=impl)


def test_reads_strided_grids(impl):
    grid = torch.tensor([[1, 9, 2, 9, 2, 9], [1, 9, 1, 9, 3, 9]])[:, ::2]
    pixels = fresh(7, 4)
    assert image_hash(pixels, grid, impl=impl).tolist() == expected(pixels, grid.tolist())


def test_pixels_may_need_gradients(impl):
    pixels = fresh(2, 8)
    hashes = image_hash(pixels.clone().requires_grad_(), impl=impl)
    assert not hashes.requires_grad
    assert torch.equal(hashes, image_hash(pixels, impl=impl))


def test_all_pictures_of_a_batch_take_one_launch(monkeypatch, device):
    kernel, launches = module._image_hash_kernel, []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(module, "_image_hash_kernel", Counted())
    grid = torch.tensor([[1, 20, 30]] * 9, device=device)
    image_hash(fresh(5400, 4).to(device), grid, impl="triton")
    assert launches == [(5400 * 4 // BLOCK + 1,)]


def test_needs_no_value_from_the_device():
    """Meta tensors have no values: whatever would read one back raises."""
    pixels, grid = torch.empty(24, 8, device="meta"), torch.empty(2, 3, device="meta").long()
    assert image_hash(pixels).shape == (24,)
    assert image_hash(pixels, grid).shape == (2,)


def hashed(*given, impl="auto"):
    return image_hash(*given, impl=impl)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        refusal("impl", ValueError, "impl='cuda' is unknown", lambda: hashed(None, impl="cuda")),
        refusal("list", TypeError, "pixels must be a tensor, got list", lambda: hashed([1.0])),
        refusal(
            "scalar",
            ValueError,
            "pixels must have at least 1 dimension",
            lambda: hashed(torch.tensor(1.0)),
        ),
        refusal(
            "complex",
            TypeError,
            "pixels must be real numbers, got torch.complex64; cast them first",
            lambda: hashed(torch.zeros(2, 2, dtype=torch.complex64)),
        ),
        refusal(
            "dtype",
            ValueError,
            'the kernel does not take torch.uint8; pass impl="auto" or "eager"',
            lambda: hashed(torch.zeros(2, 2, dtype=torch.uint8, device=DEVICE), impl="triton"),
        ),
        refusal(
            "rank with a grid",
            ValueError,
            "pixels must have 2 dimensions, got shape (1, 2, 2)",
            lambda: hashed(torch.zeros(1, 2, 2), torch.tensor([[1, 1, 1]])),
        ),
        refusal(
            "grid rank",
            ValueError,
            "grid must have 2 dimensions, got shape (3,)",
            lambda: hashed(torch.zeros(1, 2), torch.tensor([1, 1, 1])),
        ),
        refusal(
            "grid width",
            ValueError,
            "grid must be [images, 3], got shape (1, 2); pass t, h, w of every picture",
            lambda: hashed(torch.zeros(1, 2), torch.tensor([[1, 1]])),
        ),
        refusal(
            "grid dtype",
            TypeError,
            "grid must be int32 or int64, got torch.float32",
            lambda: hashed(torch.zeros(1, 2), torch.ones(1, 3)),
        ),
        refusal(
            "grid device",
            ValueError,
            "grid is on meta but the other arguments are on cpu",
            lambda: hashed(torch.zeros(1, 2), torch.empty(1, 3, device="meta").long()),
        ),
    ],
)
def test_refuses(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
