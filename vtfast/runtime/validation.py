"""What a forward of a patched model refuses, and how it says so: got, expected, what to do.

All of it is checked before a layer has run, so model and cache stay as they were.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticCache

from vtfast.errors import InputError, StateError
from vtfast.runtime.call import Call
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.kv_cache import CACHES, CacheState
from vtfast.runtime.visual_tokens import VisualTokens


def check_not_exporting() -> None:
    """Refuse to record a forward with pictures; compiling one works."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise StateError(
            "a patched model cannot be exported or traced (torch.export, torch.jit.trace, ONNX), "
            "because it reads in every call where the visual tokens are; call "
            "vtfast.unpatch(model) and export the unpatched model"
        )


def check_last_tokens(call: Call, logits_to_keep: Any, config: PatchConfig) -> None:
    """Refuse to generate from padding or a visual token, which may be dropped, and to drop all."""
    if np.array_equal(call.visual, call.valid) and any(
        stage.prune.keep == 0 for stage in config.stages.values()
    ):
        raise InputError("the call holds pictures alone, all of which the plan drops; add text")
    if type(logits_to_keep) is not int or logits_to_keep != 1:
        return
    if call.visual[:, -1].any():
        raise InputError(
            "the prompt ends in a picture, whose last token may be dropped, and then there "
            "is nothing to predict from; put text after the picture"
        )
    if not call.valid[:, -1].all():
        raise InputError(
            "a sample of the batch ends in padding, from which nothing can be predicted; "
            'pad on the left (padding_side="left")'
        )


def check_vision_scores(visual: VisualTokens, config: PatchConfig) -> None:
    """Refuse pictures of which the vision tower's attention is not known."""
    if "vision_scores" in config.needs and visual.vision_scores is None:
        raise InputError(
            f"the plan {config.plan.name!r} needs scores of the vision tower, and pictures came as "
            "features; pass them as pixels, or use a plan that needs none (diversity, cdpruner)"
        )


def check_packed_samples(call: Call, given: dict[str, Any], cache: Cache | None, text: Any) -> None:
    """Refuse a KV cache for rows that hold several samples."""
    if not call.is_joined:
        return
    keeps = given.get("use_cache")
    keeps = getattr(text.config, "use_cache", True) if keeps is None else keeps
    checkpoints = getattr(text, "gradient_checkpointing", False) and text.training
    if cache is not None or (keeps and not (checkpoints and torch.is_grad_enabled())):
        raise InputError(
            f"position_ids start again within a row: {call.shape[0]} rows hold {len(call.starts)} "
            "samples, which a KV cache cannot continue; pass use_cache=False and no cache"
        )


def plain_mask(mask: Any, cache: Cache | None, chunk: int) -> Tensor | None:
    """The [B, P + S] mask of a call of S = `chunk` tokens, as it was given; None without one.

    For a static cache `generate` prepares a 4-D mask. In the first chunk its last row says which
    tokens are real; a decoding step does not need it.
    """
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    if isinstance(cache, StaticCache) and chunk == 1:
        return None
    prepared = mask.get("full_attention") if isinstance(mask, dict) else mask
    static = isinstance(cache, StaticCache) and int(cache.get_seq_length()) == 0
    if static and (prepared is None or (isinstance(prepared, Tensor) and prepared.ndim == 2)):
        return prepared
    if static and isinstance(prepared, Tensor):
        row = prepared[:, 0, -1, :chunk]
        return row == 0 if row.is_floating_point() else row
    raise InputError(
        f"a chunk of {chunk} tokens came with a prepared attention mask ({type(mask).__name__}); "
        "pass the 2-D mask [batch, tokens] and a DynamicCache (a StaticCache takes a prepared mask "
        "in its first chunk only); for several samples packed into a row pass position_ids that "
        "start again, and no mask"
    )


def check_turn(visual: VisualTokens, cache: Cache | None, chunk: int, positions: str) -> None:
    """Refuse a later chunk (a second turn, or drafts) that the cache or positions do not allow."""
    static, renumbers = isinstance(cache, StaticCache), positions == "renumber"
    if cache is None or not (static or renumbers) or int(cache.get_seq_length()) == 0:
        return
    if renumbers and (static or visual.tokens is not None):
        raise InputError(
            f'{chunk} tokens came on a cache that holds some, and positions="renumber" counts '
            "pictures of the first turn only, then text in a DynamicCache; start a new cache, or "
            'patch with positions="keep"'
        )
    if min(visual.lengths) < chunk:
        setting, fix = 'positions="renumber" cannot count', 'patch with positions="keep"'
        if static:
            setting, fix = "a StaticCache cannot leave out", "use a DynamicCache"
        raise InputError(
            f"a later chunk is padded, which {setting}; {fix}, or go on with samples equally long"
        )


def check_state(state: CacheState, now: PatchConfig, always_padded: bool, gradients: bool) -> None:
    """Refuse a cache that another patch has pruned, and gradients through a packed one; one that
    was pruned alike is this patch's from now on."""
    made = state.config
    same = made.plan == now.plan and made.positions == now.positions
    if not same or (state.packed and always_padded):
        raise StateError(
            f"this KV cache was pruned by the plan {made.plan.name!r} (positions="
            f"{made.positions!r}) in the {'packed' if state.packed else 'padded'} layout, which "
            "the model is not patched with any more; patch it that way again, or start a new cache"
        )
    if state.packed and gradients:
        raise InputError(
            "this KV cache is packed, and attention over it has no backward; go on under "
            'torch.no_grad(), or start a new cache under path="padded"'
        )
    state.config = now


def check_cache(cache: Cache | None) -> None:
    """Refuse caches whose layers vtfast does not know."""
    if cache is not None and type(cache) not in CACHES:
        raise InputError(
            f"a pruned generation needs a DynamicCache or a StaticCache, got {type(cache).__name__}"
            "; leave cache_implementation and the cache at their defaults"
        )
