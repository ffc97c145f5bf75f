"""The arguments and results of the two layouts, `padded` and `packed`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtfast.kernels._packed_attention import PackedAttention
from vtfast.kernels.ragged import Ragged
from vtfast.runtime.kv_cache import PaddedKVMask
from vtfast.runtime.packed_kv_cache import PackedKVLayout


@dataclass(frozen=True)
class Chunk:
    """What a layout needs to know of a forward when a stage is reached.

    Attributes:
        batch, size: shape of the chunk that entered layer 0, B samples of S tokens.
        lengths: tokens of each sample that are still there.
        samples: the same, also on the device; None if nothing has needed that yet.
        slots: int64 [tokens], where each packed token sits in the running tensor; None: in order.
        mask: [B, P + S] attention mask over past and chunk, or None.
        past: real tokens of each sample before this chunk; None when there is no mask.
        cached: what the stage's layers hold, None before the first chunk that enters them.
    """

    batch: int
    size: int
    lengths: list[int]
    samples: Ragged | None
    slots: Tensor | None
    mask: Tensor | None
    past: list[int] | None
    cached: PackedKVLayout | PaddedKVMask | None


# Where a layout puts the tokens of the running tensor: int64, its places to take, in order (None:
# all as they are), and int64, where each packed token then sits (None: in order).
Placement = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Entry:
    """What the layers of a stage span get, and what the cache remembers.

    mask: whatever transformers' mask function makes. attention: how to attend to packed tokens.
    gap: tokens seen minus columns of the first attention layer; None if it stays as it is.
    present: int64 [B, longest], which places hold a token; None if all do. Recurrent layers take it
    in place of a mask.
    """

    mask: Any = None
    attention: PackedAttention | None = None
    cached: PackedKVLayout | PaddedKVMask | None = None
    gap: int | None = None
    present: Tensor | None = None
