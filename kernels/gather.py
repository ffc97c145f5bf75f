"""Copy chosen rows of several packed tensors in one launch.

`out_t[j] = x_t[index[j]]` for every tensor t. Not `x[index]` per tensor: hidden states, rotary rows
and positions travel by the same index, and at our sizes the launches cost more than the bytes.
Traffic: the chosen rows once in and once out, and the index. Bits are moved, not numbers, so the
result is exact for every dtype. Limits: no backward in the kernel ("auto" takes the twin where a
tensor needs a gradient), and index values are not checked on the device.
"""

from collections.abc import Sequence

import torch

from . import reference
from .checks import INDEX_DTYPES, check_impl, check_tensor
from .launch import on_device_of, register, tl, triton, use_triton

_OP = "gather_rows"
_ROWS = 4  # a program's tile: 4 x 1024 words, 8 loads of 16 bytes for each of 128 threads
_BLOCK = 1024
_WARPS = 4


@triton.jit
def _copy_rows(
    x_ptr,
    out_ptr,
    stride_x,
    row,
    j,
    inside,
    WIDTH: tl.constexpr,
    WORD: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy one column block of one tensor: `out[j] = x[row]`, rows of WIDTH words."""
    word = tl.pointer_type(tl.int32 if WORD == 4 else (tl.int16 if WORD == 2 else tl.int8))
    first = tl.program_id(1) * BLOCK
    if first < WIDTH:
        column = first + tl.arange(0, BLOCK)
        mask = inside[:, None] & (column < WIDTH)[None, :]
        source = x_ptr.to(word, bitcast=True) + (row * stride_x * UNIT)[:, None] + column[None, :]
        target = out_ptr.to(word, bitcast=True) + (j * WIDTH)[:, None] + column[None, :]
        tl.store(target, tl.load(source, mask=mask, other=0), mask=mask)


@triton.jit(do_not_specialize=["num_rows", "strides"])
def _gather_rows_kernel(
    # pointers: the index, and one of each per tensor
    index_ptr,
    x_ptrs,
    out_ptrs,
    # sizes
    num_rows,
    # strides between rows, in units of UNITS[t] words
    strides,
    # meta, one per tensor
    WIDTHS: tl.constexpr,  # words in a row
    WORDS: tl.constexpr,  # bytes in a word: 4, 2 or 1
    UNITS: tl.constexpr,  # 16 bytes of words if all rows start 16 bytes apart, which the compiler
    BLOCKS: tl.constexpr,  # then knows and uses 128-bit loads
    ROWS: tl.constexpr,
):
    """Grid (blocks of ROWS output rows, column blocks): a program moves its block of every tensor.

    Narrow tensors have one column block, moved by the programs of the first column.
    """
    j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = j < num_rows
    row = tl.load(index_ptr + j, mask=inside, other=0).to(tl.int64)
    for t in tl.static_range(len(WIDTHS)):
        _copy_rows(
            x_ptrs[t],
            out_ptrs[t],
            strides[t],
            row,
            j,
            inside,
            WIDTH=WIDTHS[t],
            WORD=WORDS[t],
            UNIT=UNITS[t],
            BLOCK=BLOCKS[t],
        )


def _launch(index: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    num_rows = len(index)
    outputs = [
        torch.empty((num_rows, *x.shape[1:]), dtype=x.dtype, device=x.device) for x in tensors
    ]
    pointers, layouts = [], []
    for x, out in zip(tensors, outputs, strict=True):
        if out.numel():
            x = _rows(x)
            pointers.append((x, out))
            layouts.append(_layout(x))
    if pointers:
        strides, widths, words, units = zip(*layouts, strict=True)
        blocks = tuple(min(_BLOCK, triton.next_power_of_2(width)) for width in widths)
        columns = max(triton.cdiv(*sizes) for sizes in zip(widths, blocks, strict=True))
        xs, outs = zip(*pointers, strict=True)
        with on_device_of(index):
            _gather_rows_kernel[(triton.cdiv(num_rows, _ROWS), columns)](
                index.contiguous(),
                xs,
                outs,
                num_rows,
                strides,
                WIDTHS=widths,
                WORDS=words,
                UNITS=units,
                BLOCKS=blocks,
                ROWS=_ROWS,
                num_warps=_WARPS,
            )
    return outputs


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[T, W]` with contiguous rows: a view if its rows are contiguous, else a copy."""
    x = x.flatten(1) if x.ndim > 1 else x[:, None]
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def _layout(x: torch.Tensor) -> tuple[int, int, int, int]:
    """Row stride in units, row width in words, bytes in a word, words in a unit."""
    size = x.element_size()
    width = size * x.shape[1]
    stride = size * x.stride(0)
    odd = (width | stride | x.data_ptr()) & 3
    word = 4 if odd == 0 else 2 if odd == 2 else 1
    unit = word if stride % 16 else 16
    return stride // unit, width // word, word, unit // word


def _fake(index: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.new_empty((len(index), *x.shape[1:])) for x in tensors]


_gather_rows = register("gather_rows(Tensor index, Tensor[] tensors) -> Tensor[]", _launch, _fake)


def gather_rows(
    index: torch.Tensor, *tensors: torch.Tensor, impl: str = "auto"
) -> tuple[torch.Tensor, ...]:
    """Gather rows `index` of each tensor.

    Args:
        index: `[K]` int32|int64, 0 ≤ index[j] < T; order preserved, repeats allowed, K = 0 allowed.
            Values on a CUDA device are not checked.
        tensors: one or more `[T, ...]`, any dtype and strides, same T and device as `index`. The
            kernel reads rows at any distance in place; rows that are not contiguous are copied
            first.
        impl: "auto" (Triton on CUDA tensors that need no gradient and are not complex, eager
            elsewhere) | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        One contiguous `[K, ...]` tensor per input (a tuple also for one input), dtype kept.

    Raises:
        ValueError: a rank, row count or device that does not fit, or what the kernel cannot do.
        TypeError: an index that is not int32 or int64.
        RuntimeError: impl="triton" where Triton cannot run.

    >>> hidden, positions = gather_rows(torch.tensor([0, 2]), torch.zeros(3, 8), torch.arange(3))
    >>> hidden.shape, positions.shape
    (torch.Size([2, 8]), torch.Size([2]))
    """
    check_impl(_OP, impl)
    check_tensor(_OP, "index", index, ndim=1, dtypes=INDEX_DTYPES)
    if not tensors:
        raise ValueError(f"{_OP}: got an index but no tensor to gather from; pass at least one")
    for number, x in enumerate(tensors):
        name = f"tensor {number}"
        check_tensor(_OP, name, x, device=index.device)
        if x.ndim == 0:
            raise ValueError(f"{_OP}: {name} must have at least 1 dimension; it has no rows")
        if len(x) != len(tensors[0]):
            raise ValueError(
                f"{_OP}: {name} has shape {tuple(x.shape)} but tensor 0 has "
                f"{tuple(tensors[0].shape)}; all need the same number of rows"
            )
    if use_triton(_OP, impl, index.device, unable=_unable(tensors)):
        return tuple(_gather_rows(index, tensors))
    return reference.gather_rows(index, *tensors)


def _unable(tensors: Sequence[torch.Tensor]) -> str:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "the kernel has no backward and a tensor needs a gradient"
    if any(x.is_complex() for x in tensors):
        return "the kernel does not know complex tensors"
    return ""
