"""What the kernels of the greedy picks by gain share: weights and ties, as `_gains.py` has them."""

from ._launch import tl, triton

NEARLY = tl.constexpr(1 - 2.0**-17)
NOT_FINITE, PICKED = tl.constexpr(-1.0), tl.constexpr(-2.0)  # ranks below those of all weights

_SMALLEST, _LARGEST = tl.constexpr(2.0**-100), tl.constexpr(2.0**100)


@triton.jit
def rank_of(weight, inverse):
    """A weight, 0 for a small one; `NOT_FINITE` if it is not, or its row (1 / norm is below 0)."""
    finite = (tl.abs(weight) < _LARGEST) & (inverse >= 0.0)  # false for NaN
    return tl.where(finite, tl.where(weight < _SMALLEST, 0.0, weight), NOT_FINITE)


@triton.jit
def first(mask, position):
    """The lowest position in a mask; 2^31 - 1 in an empty one."""
    return tl.min(tl.where(mask, position, 2147483647))
