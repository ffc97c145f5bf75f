"""The calls whose kernels are compiled ahead of time: each op where its kernels differ.

What is compiled is what the launchers ask for in these calls (types, constants, warps, stages), so
no setting is written down twice. Nothing is launched and no value is read: the tensors are never
filled.

A new op gets a function here that yields its cases, and a place in `OPS`. Cases with `gate` are
compiled in every `make test`: one per kernel, the most demanding. All others are compiled by
`make aot`, which has to be run again when a setting changes or a case is new.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vtfast.kernels import _distances as distance_kernels
from vtfast.kernels._checks import INDEX_DTYPES, KERNEL_DTYPES, REFERENCE_DTYPES
from vtfast.kernels._dot_products import dot_products
from vtfast.kernels._threshold import TILES
from vtfast.kernels.compact import compact
from vtfast.kernels.coverage_select import _TILES as COVERAGE_TILES
from vtfast.kernels.coverage_select import coverage_select
from vtfast.kernels.diversity_select import diversity_select
from vtfast.kernels.dpp_select import dpp_select
from vtfast.kernels.gather import gather_rows
from vtfast.kernels.image_hash import image_hash
from vtfast.kernels.last_query_scores import last_query_scores
from vtfast.kernels.ragged import Ragged
from vtfast.kernels.ragged_attention import ragged_attention
from vtfast.kernels.ragged_decode import ragged_decode
from vtfast.kernels.random_select import random_select
from vtfast.kernels.topk_select import topk_select

HEADS = ((28, 4, 128), (8, 8, 64), (12, 2, 80), (8, 1, 256))  # Qwen2.5-VL 7B; small, odd, large
LONGEST = max(longest for longest, _ in TILES)


@dataclass(frozen=True)
class Case:
    """A call of an op, and what a table calls it."""

    name: str
    call: Callable[[], object]
    gate: bool = False


def cases() -> Iterator[Case]:
    for op in OPS:
        yield from op()


def _gather_rows() -> Iterator[Case]:
    def case(name: str, *tensors: torch.Tensor, index=torch.int32, gate=False) -> Case:
        rows = torch.empty(8, dtype=index)
        return Case(name, partial(gather_rows, rows, *tensors, impl="triton"), gate)

    # Rows start 16 bytes apart, and their stride is no multiple of more: only the launcher's units
    # say so. (Triton looks at strides in a tuple in spite of `do_not_specialize`.)
    hidden = _empty(64, 4104)[:, :4096]
    positions = _empty(64, dtype=torch.int64)
    for index in INDEX_DTYPES:
        name = f"hidden states and positions, {_short(index)} index"
        yield case(name, hidden, positions, index=index, gate=index == torch.int64)
    yield case("hidden states", hidden)
    yield case("hidden states, cos, sin, positions", hidden, *[_empty(64, 128)] * 2, positions)
    yield case("keys and values of 28 layers", *[_empty(64, 4, 128)] * 56)
    yield case("rows at odd distances", _empty(64, 4097)[:, :4096])
    yield case("bytes", _empty(64, 77, dtype=torch.int8))


def _compact() -> Iterator[Case]:
    visual = _empty(576, dtype=torch.int64)
    where = visual, Ragged.from_lengths([640], "cpu"), [640 - 576 + 144]
    for dtype in INDEX_DTYPES:
        for number in range(3):
            call = partial(compact, _empty(144, dtype=dtype), *where, impl="triton")
            call = partial(call, places=[_empty(640, dtype=torch.int64)] * number)
            gate = (dtype, number) == (torch.int32, 2)
            yield Case(f"{_short(dtype)} picks, {number} vectors", call, gate)


def _topk_select() -> Iterator[Case]:
    for longest, _ in TILES:
        for dtype in KERNEL_DTYPES:
            yield Case(
                f"{_short(dtype)}, {longest} rows",
                partial(
                    topk_select, _empty(longest, dtype=dtype), *_one_segment(longest), impl="triton"
                ),
                gate=longest == LONGEST and dtype == torch.float32,
            )


def _random_select() -> Iterator[Case]:
    for longest, _ in TILES:
        call = partial(random_select, *_one_segment(longest), seed=0, stream=0, impl="triton")
        yield Case(f"{longest} rows", call, gate=longest == LONGEST)


def _diversity_select() -> Iterator[Case]:
    """Narrow features, since the dot products of long segments are computed even here."""
    for rows in (LONGEST, 8192, 4096, 2048, 2047, 1024):
        for dtype in (torch.bfloat16, torch.float32):
            for weights, weighted in _with_weights(rows):
                features = _empty(rows, 16, dtype=dtype)
                call = partial(diversity_select, features, *_one_segment(rows), weights=weights)
                gate = rows in (LONGEST, 2047)[: 2 - bool(weighted)] and dtype == torch.bfloat16
                name = f"{_short(dtype)} x 16, {rows} rows{weighted}"
                yield Case(name, partial(call, impl="triton"), gate)
    features, norms = _empty(2048, 16), (torch.empty(2048), torch.empty(2048, dtype=torch.int32))
    where = (_one_segment(2048)[0].cu_seqlens, 0, [2048])
    call = partial(dot_products, features, *norms, *where)
    yield Case("bf16 x 16, 2048 rows", call, gate=True)  # on AMD the op does not take it
    yield from _distances("bf16 x 1024", _empty(576, 1024))
    odd = _empty(576 * 3584 + 1)[1:].view(576, 3584)
    yield from _distances("bf16 x 3584, at an odd address", odd)
    for dtype in KERNEL_DTYPES:
        yield from _distances(f"{_short(dtype)} x 3584", _empty(576, 3584, dtype=dtype))
        odd = _empty(576, 1023, dtype=dtype)
        yield from _distances(f"{_short(dtype)} x 1023, rows at odd distances", odd)


def _distances(name: str, features: torch.Tensor) -> Iterator[Case]:
    """Norms and distances; the greedy kernel does not see the features."""
    segments, _ = _one_segment(len(features))
    inverse, nearest = torch.empty(576), torch.empty(576, dtype=torch.int32)
    where = (segments.cu_seqlens, segments.cu_seqlens, segments.lengths)
    for weights, weighted in _with_weights(576):
        call = partial(distance_kernels.distance_matrices, features, inverse, nearest, *where)
        yield Case(name + weighted, partial(call, weights=weights), gate=name == "fp32 x 3584")
        yield Case(name + weighted, partial(distance_kernels.norms, features, weights))


def _with_weights(rows: int) -> tuple[tuple[torch.Tensor | None, str], ...]:
    """No weights, and weights, with what a name says of them."""
    return (None, ""), (torch.empty(rows), ", weighted")


def _dpp_select() -> Iterator[Case]:
    yield from _by_gain(dpp_select, [longest for longest, _ in TILES[:2]])


def _coverage_select() -> Iterator[Case]:
    yield from _by_gain(coverage_select, [longest for longest, _ in COVERAGE_TILES])


def _by_gain(op: Callable[..., object], sizes: list[int]) -> Iterator[Case]:
    """Norms and distances are those of `_diversity_select`."""
    for rows in sizes:
        call = partial(op, _empty(rows, 16), torch.empty(rows), *_one_segment(rows), impl="triton")
        yield Case(f"bf16 x 16, {rows} rows", call, gate=rows == sizes[-1])


def _image_hash() -> Iterator[Case]:
    """Patches of Qwen2.5-VL and pictures of LLaVA-1.5; sizes that are no multiple of 16 bytes."""

    def case(name: str, *shape: int, grid=None, dtype=torch.float32, gate=False) -> Case:
        grid = None if grid is None else torch.empty(2, 3, dtype=grid)
        call = partial(image_hash, _empty(*shape, dtype=dtype), grid, impl="triton")
        return Case(f"{_short(dtype)}, {name}", call, gate)

    for dtype in REFERENCE_DTYPES:
        named = {"grid": torch.int64, "dtype": dtype}
        yield case("patches of 1176", 64, 1176, **named, gate=dtype == torch.float32)
        yield case("patches of 1177", 64, 1177, **named)
        yield case("pictures of 336 x 336", 2, 3, 336, 336, dtype=dtype)
        yield case("pictures of 335 x 335", 2, 3, 335, 335, dtype=dtype)
    yield case("patches of 1176, int32 grid", 64, 1176, grid=torch.int32)


def _last_query_scores() -> Iterator[Case]:
    """Qwen2.5-VL 7B, LLaVA 1.5 7B, a head size that is padded, and the largest of everything."""
    for heads, key_heads, size in ((28, 4, 128), (32, 32, 128), (12, 2, 80), (64, 1, 256)):
        for dtype in KERNEL_DTYPES:
            q, k = _empty(1, heads, size, dtype=dtype), _empty(640, key_heads, size, dtype=dtype)
            yield Case(
                f"{_short(dtype)} x {size}, {heads} heads on {key_heads}",
                partial(last_query_scores, q, k, _one_segment(640)[0], scale=1.0, impl="triton"),
                gate=(heads, dtype) == (28, torch.bfloat16),
            )


def _ragged_attention() -> Iterator[Case]:
    """Both tiles of a pair: 64 rows take the small one."""

    def case(
        *heads: int, dtype=torch.bfloat16, rows=4096, causal=True, index=None, gate=False
    ) -> Case:
        number, key_number, size = heads
        tensors = [_empty(rows, n, size, dtype=dtype) for n in (number, key_number, key_number)]
        index = index and torch.empty(rows, dtype=index)
        segments, _ = _one_segment(rows)
        call = partial(ragged_attention, *tensors, segments, segments, causal=causal, k_index=index)
        name = f"{_short(dtype)} x {size}, {number} heads on {key_number}, {rows} rows"
        name += ("" if causal else ", not causal") + (index is not None) * ", indexed"
        return Case(name, partial(call, impl="triton"), gate)

    for heads in HEADS:
        yield case(*heads, gate=heads == HEADS[0])
        yield case(*heads, causal=False)
        yield case(*heads, index=torch.int32, gate=heads == HEADS[0])
        yield case(*heads, rows=64)
        yield case(*heads, rows=64, causal=False)
        yield case(*heads, rows=64, index=torch.int32)
        if heads[2] <= 128:
            yield case(*heads, dtype=torch.float32)
            yield case(*heads, dtype=torch.float32, causal=False)
            yield case(*heads, dtype=torch.float32, index=torch.int32)
    yield case(*HEADS[0], dtype=torch.float16)
    yield case(*HEADS[0], index=torch.int64)


def _ragged_decode() -> Iterator[Case]:
    lengths = torch.empty(2, dtype=torch.int32)
    for heads, key_heads, size in (*HEADS, (32, 32, 128)):
        for dtype in (torch.bfloat16, torch.float32)[: 1 + (size <= 128)]:
            for index in (None, torch.empty(640, dtype=torch.int32)):
                q, k = (
                    _empty(2, heads, size, dtype=dtype),
                    _empty(640, key_heads, size, dtype=dtype),
                )
                call = partial(ragged_decode, q, k, k, lengths, starts=lengths, k_index=index)
                name = f"{_short(dtype)} x {size}, {heads} heads on {key_heads}"
                yield Case(
                    name + (index is not None) * ", indexed",
                    partial(call, impl="triton"),
                    gate=(heads, dtype) == (28, torch.bfloat16) and index is not None,
                )
                yield Case(
                    f"{name}, one split" + (index is not None) * ", indexed",
                    partial(call, impl="triton", max_length=128),
                )


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def _one_segment(rows: int) -> tuple[Ragged, list[int]]:
    """One segment, and a number of rows to keep of it."""
    return Ragged.from_lengths([rows], "cpu"), [rows // 2]


def _short(dtype: torch.dtype) -> str:
    return {"float": "fp", "bfloat": "bf"}.get(kind := str(dtype)[6:-2], kind) + str(dtype)[-2:]


OPS = (
    _gather_rows,
    _compact,
    _topk_select,
    _random_select,
    _diversity_select,
    _dpp_select,
    _coverage_select,
    _image_hash,
    _last_query_scores,
    _ragged_attention,
    _ragged_decode,
)
