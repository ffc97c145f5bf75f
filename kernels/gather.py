"""Copy chosen rows of several packed tensors in one launch.

`out_t[j] = x_t[index[j]]` for every tensor t. Hidden states, rotary rows and positions are gathered
by the same index, and at our sizes a launch costs more than the copy, so one launch copies them
all. Traffic: the chosen rows once in and once out, and the index. The kernel copies bits as
integers, so the result is exact for every dtype. Limits: the kernel has no backward ("auto" falls
back to PyTorch where a tensor needs a gradient), and index values are not checked on the device.
"""

from collections.abc import Sequence

import torch

from . import reference
from ._checks import INDEX_DTYPES, check_has_rows, check_impl, check_tensor
from ._launch import (
    cdiv,
    next_power_of_2,
    on_device_of,
    register,
    tl,
    triton,
    use_triton,
)

_OP = "gather_rows"
_ROWS = 4  # a program's tile: 4 x 1024 words, 8 loads of 16 bytes for each of 128 threads
_SPAN = 1024
_WARPS = 4

# How the rows of one tensor are copied: words in a row; bytes in a word (4, 2 or 1); words in a
# unit of the stride; words copied at a time. The unit is 16 bytes if the stride is a multiple of
# that, so that the compiler sees it and uses 128-bit loads; else it is one word.
Layout = tuple[int, int, int, int]


@triton.jit
def _copy_span(
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
    SPAN: tl.constexpr,
):
    """Copy `out[j] = x[row]` of one tensor, in the span of columns of this program."""
    word = tl.pointer_type(tl.int32 if WORD == 4 else (tl.int16 if WORD == 2 else tl.int8))
    for start in range(0, SPAN if SPAN < WIDTH else WIDTH, BLOCK):
        first = tl.program_id(1) * SPAN + start
        if first < WIDTH:
            column = first + tl.arange(0, BLOCK)
            mask = inside[:, None] & (column < WIDTH)[None, :]
            source = x_ptr.to(word, bitcast=True) + (row * stride_x * UNIT)[:, None]
            target = out_ptr.to(word, bitcast=True) + (j * WIDTH)[:, None]
            block = tl.load(source + column[None, :], mask=mask, other=0)
            tl.store(target + column[None, :], block, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "strides"])
def _gather_rows_kernel(
    # pointers: the index; sources and outputs, one per tensor
    index_ptr,
    x_ptrs,
    out_ptrs,
    # sizes
    num_rows,
    # strides between rows, one per tensor
    strides,
    # meta
    LAYOUTS: tl.constexpr,  # one per tensor
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Grid (blocks of ROWS output rows, column spans): a program copies its block of all tensors.

    The grid has the spans of the widest tensor; programs past the columns of a tensor skip it.
    """
    j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = j < num_rows
    row = tl.load(index_ptr + j, mask=inside, other=0).to(tl.int64)
    for t in tl.static_range(len(LAYOUTS)):
        _copy_span(
            x_ptrs[t],
            out_ptrs[t],
            strides[t],
            row,
            j,
            inside,
            WIDTH=LAYOUTS[t][0],
            WORD=LAYOUTS[t][1],
            UNIT=LAYOUTS[t][2],
            BLOCK=LAYOUTS[t][3],
            SPAN=SPAN,
        )


def _copy_plan(
    tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], tuple[int, ...], tuple[Layout, ...]]:
    """Sources, outputs, row strides in units, and layouts of the tensors that are not empty."""
    sources = [_rows(x) for x in tensors]
    kept = [
        (_as_bytes(x), _as_bytes(out))
        for x, out in zip(sources, outputs, strict=True)
        if out.numel()
    ]
    layouts = [_layout(x) for x, _ in kept]
    return (
        tuple(x for x, _ in kept),
        tuple(out for _, out in kept),
        tuple(stride for stride, _ in layouts),
        tuple(layout for _, layout in layouts),
    )


def _why_unsupported(tensors: Sequence[torch.Tensor]) -> str:
    """Why the kernel cannot gather rows of these tensors; "" if it can."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "the kernel has no backward and a tensor needs a gradient"
    if any(x.is_complex() for x in tensors):
        return "the kernel does not take complex tensors"
    return ""


def _launch(index: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    num_rows = len(index)
    # Contiguous, whatever the strides of the tensors.
    outputs = [
        torch.empty((num_rows, *x.shape[1:]), dtype=x.dtype, device=x.device) for x in tensors
    ]
    sources, targets, strides, layouts = _copy_plan(tensors, outputs)
    if layouts:
        spans = max(cdiv(width, _SPAN) for width, *_ in layouts)
        with on_device_of(index):
            _gather_rows_kernel[(cdiv(num_rows, _ROWS), spans)](
                index.contiguous(),
                sources,
                targets,
                num_rows,
                strides,
                LAYOUTS=layouts,
                ROWS=_ROWS,
                SPAN=_SPAN,
                num_warps=_WARPS,
                enable_fp_fusion=True,
            )
    return outputs


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` as `[T, W]` with contiguous rows: a view if they are contiguous already, else a copy."""
    if x.ndim != 2:
        x = x.flatten(1) if x.ndim > 2 else x[:, None]
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def _as_bytes(x: torch.Tensor) -> torch.Tensor:
    """8-bit dtypes as int8, because neither Triton nor every GPU knows every 8-bit float."""
    return x.view(torch.int8) if x.element_size() == 1 else x


def _layout(x: torch.Tensor) -> tuple[int, Layout]:
    """Row stride in units, and the layout, of a `[T, W]` tensor with contiguous rows."""
    size = x.element_size()
    width = size * x.shape[1]
    stride = size * x.stride(0)
    bits = width | stride | x.data_ptr()  # its low bits give the alignment common to all three
    word = 4 if bits % 4 == 0 else 2 if bits % 2 == 0 else 1
    unit = word if stride % 16 else 16
    width //= word
    return stride // unit, (width, word, unit // word, min(_SPAN, next_power_of_2(width)))


def _fake(index: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.new_empty((index.shape[0], *x.shape[1:])) for x in tensors]


_gather_rows = register("gather_rows(Tensor index, Tensor[] tensors) -> Tensor[]", _launch, _fake)


def gather_unchecked(
    index: torch.Tensor, tensors: Sequence[torch.Tensor], kernel: bool
) -> Sequence[torch.Tensor]:
    """`gather_rows` of arguments that are known to be right, and that the kernel takes if `kernel`;
    the dispatcher is asked only while `torch.compile` traces."""
    if not kernel:
        return reference.gather_rows(index, *tensors)
    return (_gather_rows if torch.compiler.is_compiling() else _launch)(index, tensors)


def gather_rows(
    index: torch.Tensor, *tensors: torch.Tensor, impl: str = "auto"
) -> tuple[torch.Tensor, ...]:
    """Gather rows `index` of each tensor.

    Args:
        index: `[K]` int32|int64, 0 ≤ index[j] < T; order preserved, repeats allowed, K = 0 allowed.
            Values on a CUDA device are not checked.
        tensors: one or more `[T, ...]`, any dtype and strides, same T and device as `index`. The
            kernel reads contiguous rows in place, whatever the stride between them; other tensors
            are copied first.
        impl: "auto" (Triton on CUDA tensors that need no gradient and are not complex, eager
            elsewhere) | "eager" | "triton"; an explicit choice never falls back.

    Returns:
        One contiguous `[K, ...]` tensor per input (a tuple also for one input), dtype kept.

    Raises:
        ValueError: a rank, row count or device that does not fit, or impl="triton" for what the
            kernel cannot do.
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
        check_has_rows(_OP, name, x, index.device)
        if len(x) != len(tensors[0]):
            raise ValueError(
                f"{_OP}: {name} has shape {tuple(x.shape)} but tensor 0 has "
                f"{tuple(tensors[0].shape)}; all need the same number of rows"
            )
    if use_triton(_OP, impl, index.device, why_unsupported=_why_unsupported(tensors)):
        return tuple(_gather_rows(index, tensors))
    return reference.gather_rows(index, *tensors)
