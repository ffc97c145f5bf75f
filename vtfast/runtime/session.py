"""The hooks that put a plan into one model, and take it out again without a trace.

One prefill: the multimodal pre-hook finds the visual tokens (the one host read) → the text
pre-hook opens a `Pass` and threads it to the layers → before each prune layer a method picks rows,
one gather packs hidden states and rotary rows, and the layers from there on see the shorter
sequence → the text post-hook puts the outputs back. Hooks only: no forward is replaced, no class
touched; state of a forward lives in its `Pass`, state of a generation on its cache, none on the
model.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from vtfast.errors import InputError, StateError
from vtfast.plan import Plan
from vtfast.runtime import attention
from vtfast.runtime.cache import CacheState, PrunedDynamicCache, state_of
from vtfast.runtime.forward import Pass, Query, Stage
from vtfast.runtime.layouts import Layout, Packed, Padded
from vtfast.runtime.report import Report
from vtfast.runtime.visual import Visual, locate, valid_lengths

PASS, VISUAL = "vtfast_pass", "vtfast_visual"  # private keyword arguments between our hooks


class Session:
    """One patched model: its settings, its hooks, the report of its last prefill."""

    def __init__(
        self,
        family: Any,
        parts: Any,
        plan: Plan,
        stages: list[Stage],
        *,
        seed: int,
        impl: str,
        path: str,
        record: bool,
    ) -> None:
        self.family, self.parts, self.plan, self.stages = family, parts, plan, stages
        self.seed, self.impl, self.path, self.record = seed, impl, path, record
        self.needs = frozenset().union(*(s.method.needs for s in stages))
        self.report: Report | None = None
        self._handles: list[Any] = []
        self._original = parts.text.config._attn_implementation
        self._always_padded = self._why_always_padded()
        self._expected = self._original if self._always_padded else attention.NAME
        self._switched = False  # whether our attention is set
        self._layouts: tuple[Layout, Layout] = (Padded(parts.text.config), Packed())

    # -- in and out ----------------------------------------------------------------------------

    def install(self) -> None:
        """Add the hooks; on any failure none stays."""
        text = self.parts.text
        try:
            if not self._always_padded:
                attention.register()
                text.set_attn_implementation(attention.NAME)
                self._switched = True
            self._add(self.parts.model.register_forward_pre_hook, self._model_pre)
            self._add(self.parts.multimodal.register_forward_pre_hook, self._multimodal_pre)
            self._add(self.parts.tower.register_forward_pre_hook, self._tower_pre)
            self._add(self.parts.tower.register_forward_hook, self._tower_post)
            self._add(text.register_forward_pre_hook, self._text_pre)
            self._add(text.register_forward_hook, self._text_post)
            self._handles.append(self.parts.rotary.register_forward_hook(_as_list))
            first = self.stages[0].layer
            by_layer = {stage.layer: stage for stage in self.stages}
            scored = {s.score_layer for s in self.stages if s.score_layer != s.layer}
            for i, layer in enumerate(self.parts.layers):
                if i in by_layer:
                    self._add(layer.register_forward_pre_hook, self._prune_pre, by_layer[i])
                elif i > first:
                    self._add(layer.register_forward_pre_hook, self._later_pre)
                if i in scored:
                    self._add(layer.register_forward_pre_hook, self._score_pre)
                if self._always_padded:
                    self._add(layer.register_forward_pre_hook, self._last_pre)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook out and restore the attention implementation; idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        text = self.parts.text
        if self._switched and text.config._attn_implementation == attention.NAME:
            text.set_attn_implementation(self._original)
        self._switched = False

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def _add(self, register: Callable[..., Any], hook: Callable[..., Any], *args: Any) -> None:
        hook = partial(hook, *args) if args else hook
        self._handles.append(register(hook, with_kwargs=True))

    # -- which layout --------------------------------------------------------------------------

    def _why_always_padded(self) -> str | None:
        """The reason no forward of this patch can be packed; None if one can."""
        if self.path == "padded":
            return "asked for"
        if self._original != "sdpa":
            reason = f"the model runs attention {self._original!r}"
            if self.path == "packed":
                raise InputError(
                    f'path="packed" brings its own attention, but {reason}; '
                    'pass path="padded" or call model.set_attn_implementation("sdpa") first'
                )
            return reason
        if self.path == "auto" and next(self.parts.text.parameters()).device.type != "cuda":
            return "the model was not on a GPU when it was patched"
        return None

    def _layout(
        self, embeds: Tensor, cache: Cache | None, kwargs: dict[str, Any]
    ) -> tuple[Layout, str]:
        """Layout and reason: decided once per cache; an explicit choice is kept or refused."""
        padded, packed = self._layouts
        state = state_of(cache)
        if state is not None:
            self._check_state(state)
            return packed if state.packed else padded, "decided at this cache's first prefill"
        if self._always_padded:
            return padded, self._always_padded
        if torch.is_grad_enabled() and embeds.requires_grad:
            reason = "gradients are enabled"
        elif kwargs.get("output_attentions"):
            reason = "attention maps were asked for"
        elif getattr(cache, "offloading", False):
            reason = "the cache offloads its layers"
        elif self.parts.text.training and getattr(self.parts.text.config, "attention_dropout", 0):
            reason = "attention dropout is on"
        else:
            return packed, "asked for" if self.path == "packed" else "on a GPU, without gradients"
        if self.path == "packed":
            raise InputError(
                f'path="packed" cannot run this forward: {reason}; '
                "call it in eval mode under torch.no_grad(), without attention maps or an "
                'offloaded cache, or patch with path="padded"'
            )
        return padded, reason

    # -- hooks ---------------------------------------------------------------------------------

    def _model_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = _by_name(module, args, kwargs)
        labels, rows = call.get("labels"), call.get("logits_to_keep")
        keeps = [stage.prune.keep for stage in self.stages]
        keeps_all = all(isinstance(keep, float) and keep == 1 for keep in keeps)
        if keeps_all or not (labels is not None or (isinstance(rows, int) and rows > 0)):
            return
        for source in self.family.sources(self.parts.multimodal, call, keys=False):
            where = source.placeholder
            if rows and rows > 1 and "scores" in self.needs:
                raise InputError(
                    f"logits_to_keep={rows}, as in assisted or prompt-lookup decoding, where the "
                    "last token is a guess that text scores would follow; prune by a method "
                    "without scores, or decode without drafts (a plain call takes 0 or 1)"
                )
            # Asking a GPU would cost a read in every generation.
            if rows == 1 and where.device.type == "cpu" and where[:, -1].numpy().any():
                raise InputError(
                    "the prompt ends in a picture, whose last token may be dropped, and then there "
                    "is nothing to predict from; put text after the picture"
                )
            if labels is not None and (where[:, :-1] & (labels[:, 1:] != -100)).any():
                raise InputError(
                    "a label would be predicted from a visual token, whose logits mean nothing "
                    "once it may be dropped; set labels at and right after a picture to -100"
                )

    def _multimodal_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = _by_name(module, args, kwargs)
        sources = self.family.sources(module, call, "keys" in self.needs)
        if not sources:
            return None
        mask = call.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise InputError(
                "a prefill with pictures came with a prepared attention mask "
                f"({type(mask).__name__}); pass the 2-D mask [batch, tokens] and a DynamicCache"
            )
        return (), {**call, VISUAL: locate(sources, mask)}

    def _tower_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if VISUAL in kwargs:  # some families hand all their keyword arguments to the tower
            return args, {k: v for k, v in kwargs.items() if k != VISUAL}
        return None

    def _tower_post(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        self.family.note(args, kwargs, out, "keys" in self.needs)

    def _text_pre(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._check_attention(module)
        kwargs = _by_name(module, args, kwargs)
        visual: Visual | None = kwargs.pop(VISUAL, None)
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        state = state_of(cache)
        if visual is None and not (state and state.stages):
            return None
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:  # the text model called by itself, to go on with a pruned cache
            embeds = kwargs["inputs_embeds"] = module.embed_tokens(kwargs.pop("input_ids"))
        chunk = embeds.shape[1]
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise InputError(
                f"a pruned generation came with a prepared attention mask ({type(mask).__name__}); "
                "pass the 2-D mask [batch, tokens]"
            )
        self._check_cache(module, cache)
        if visual is None and chunk > 1:  # text only, on a cache with gaps
            lengths: list[int] = [chunk] * embeds.shape[0]
            past = None
            if mask is not None:
                lengths, past = valid_lengths(mask, chunk)
            visual = Visual(None, [], lengths, past)
        layout, reason = self._layout(embeds, cache, kwargs)
        run = Pass(embeds.shape[:2], visual, mask, cache, layout, reason, self)
        first = self.stages[0]
        if first.layer == 0 and (
            (state and state.has(0)) or (visual and first.drops(visual.segments))
        ):
            # Every layer gets a mask of ours or none, so transformers need not build one: it
            # returns a 4-D mask as it is.
            kwargs["attention_mask"] = embeds.new_zeros(1, 1, 1, 1)
        return (), {**kwargs, PASS: run}

    def _prune_pre(self, stage: Stage, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        run: Pass | None = kwargs.get(PASS)
        if run is None:
            return None
        run.cache = kwargs.get("past_key_values")  # the text model may have made it just now
        hidden = run.enter(stage, module, args[0], kwargs["position_embeddings"])
        return (hidden, *args[1:]), _masked(run, kwargs)

    def _later_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        run: Pass | None = kwargs.get(PASS)
        return None if run is None else (args, _masked(run, kwargs))

    def _last_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Attention functions of others need not know our keyword."""
        return (args, {k: v for k, v in kwargs.items() if k != PASS}) if PASS in kwargs else None

    def _score_pre(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        run: Pass | None = kwargs.get(PASS)
        if run is not None and run.rows is not None:
            cos, sin = kwargs["position_embeddings"]
            run.query = Query(module, args[0], (cos, sin))

    def _text_post(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        run: Pass | None = kwargs.get(PASS)
        if run is None:
            return None
        hidden = run.finish(out[0])
        if run.rows is not None:
            self.report = Report.of(run, len(self.parts.layers))
        if isinstance(out, tuple):
            return (hidden, *out[1:])
        out["last_hidden_state"] = hidden
        if out.get("hidden_states") is not None:  # its last entry is the last hidden state
            out["hidden_states"] = (*out["hidden_states"][:-1], hidden)
        return out

    # -- refusals ------------------------------------------------------------------------------

    def _check_state(self, state: CacheState) -> None:
        if state.plan != self.plan or (state.packed and self._always_padded):
            raise StateError(
                f"this KV cache was pruned by the plan {state.plan.name!r} in the "
                f"{'packed' if state.packed else 'padded'} layout, which the model is not patched "
                "with any more; patch it so again, or start a new cache"
            )

    def _check_attention(self, text: Any) -> None:
        now = text.config._attn_implementation
        if now != self._expected:
            raise StateError(
                f"the attention implementation was changed to {now!r} while the model is patched; "
                "call vtfast.unpatch(model), set it, and patch again"
            )

    @staticmethod
    def _check_cache(text: nn.Module, cache: Cache | None) -> None:
        if cache is not None and type(cache) not in (DynamicCache, PrunedDynamicCache):
            raise InputError(
                f"a pruned generation needs a DynamicCache, got {type(cache).__name__}; "
                "leave cache_implementation and past_key_values at their defaults"
            )
        if text.training and getattr(text, "gradient_checkpointing", False):
            raise InputError(
                "gradient checkpointing runs the layers twice, which this version cannot prune; "
                "call model.gradient_checkpointing_disable() first"
            )


def _by_name(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments, all by keyword, in a dict of ours."""
    names = signature(module.forward).parameters if args else ()
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _as_list(module: nn.Module, args: Any, out: tuple[Tensor, ...]) -> list[Tensor]:
    """transformers hands this same object to every layer: a prune stage rewrites it in place."""
    return list(out)


def _masked(run: Pass, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The padded layout's mask, and no positions: FlashAttention reads gaps as packed sequences."""
    if run.layer_mask is None:
        return kwargs
    return {**kwargs, "attention_mask": run.layer_mask[0], "position_ids": None}
