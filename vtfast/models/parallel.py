"""Models whose weights or heads are split over several processes: FSDP and tensor parallelism.

The first has all weights of a layer while it runs; the second never has more than its own heads.
"""

from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from vtfast.errors import UnsupportedModelError


def unwrapped(module: Any) -> Any:
    """The module inside the wrappers of FSDP1 and activation checkpointing: its hooks run when its
    weights are gathered, and again where it runs again."""
    for name in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        module = getattr(module, name, module)
    return module


def gather_weights(attention: Any) -> None:
    """Gather the weights of an attention module that FSDP shards apart from its layer."""
    if hasattr(attention, "unshard"):  # FSDP2; resharded after the layer, which runs next
        attention.unshard()
    elif hasattr(attention, "_fsdp_wrapped_module"):
        raise UnsupportedModelError(
            "attention scores need the weights of self_attn, which FullyShardedDataParallel wraps "
            "by itself; wrap whole decoder layers (transformer_auto_wrap_policy), or use a method "
            "that needs no scores (diversity, random)"
        )


def processes_with_heads(attention: Any, query: Tensor, keys: Tensor) -> ProcessGroup | None:
    """The processes among which tensor parallelism splits the heads; None if all are here.

    query, keys: [tokens, heads here · head size].
    """
    config, size = attention.config, attention.head_dim
    whole = config.num_attention_heads * size, config.num_key_value_heads * size
    here = query.shape[-1], keys.shape[-1]
    if here == whole:
        return None
    group = next(filter(None, map(_group_of_rows, attention.q_proj.parameters())), None)
    known = group is not None and tuple(width * group.size() for width in here) == whole
    if not known or any(width % size for width in here):
        raise UnsupportedModelError(
            f"attention scores need whole heads: this process has {here[0]} of {whole[0]} query "
            f"and {here[1]} of {whole[1]} key columns, heads of {size}, split in a way vtfast does "
            'not know; load the model with tp_plan="auto" on a number of processes that divides '
            "the key heads, or use a method that needs no scores (diversity, random)"
        )
    return group


def _group_of_rows(weight: Tensor) -> ProcessGroup | None:
    """The processes that hold the other rows of a weight, if it is a DTensor cut by rows."""
    for dim, placement in enumerate(getattr(weight, "placements", ())):
        if placement.is_shard(0):
            group: ProcessGroup = weight.device_mesh.get_group(dim)  # type: ignore[attr-defined]
            return group
    return None
