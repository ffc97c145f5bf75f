"""The hooks that put a plan into one model, and take it out again without a trace.

One prefill: the multimodal pre-hook finds the visual tokens (the one host read) → the text
pre-hook opens a `ForwardState` and hands it to the layers → before each stage's layer a method
picks tokens, one gather shortens hidden states and rotary rows, and the layers from there on see
the shorter sequence → the text post-hook puts the outputs back. No forward is replaced and no class
touched: there are hooks, and stand-ins for methods of this one model (`stand_in`). State of a
forward lives in its `ForwardState`, state of a generation on its cache, none on the model.
"""

import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vtfast.errors import InputError, StateError, UnsupportedModelError
from vtfast.methods import kernel_limits
from vtfast.report import Report
from vtfast.runtime import attention, choose_layout, names, validation
from vtfast.runtime.call import PROMPT_IDS, Call, read_call
from vtfast.runtime.config import PatchConfig
from vtfast.runtime.handed import RotaryRows
from vtfast.runtime.kv_cache import CacheState, state_of
from vtfast.runtime.labels import ignore_unpredictable
from vtfast.runtime.model import Parts
from vtfast.runtime.packed import Packed
from vtfast.runtime.padded import Padded
from vtfast.runtime.prompt import tokens_after_prompt
from vtfast.runtime.stand_in import StandIn, prepare_with_ids
from vtfast.runtime.state import ForwardState, may_run_again
from vtfast.runtime.visual_tokens import VisualTokens, locate, of_text

# Private keyword arguments between our hooks. What transformers hands to its modules, and what they
# return, differs between models and releases: that is what `Any` stands for below.
STATE, VISUAL = "vtfast_state", "vtfast_visual"
_UNSEEN_PICTURES = (
    "the prompt came as inputs_embeds: pictures whose features they hold are not pruned, because "
    "only ids tell where those are; call generate with input_ids beside inputs_embeds or pixels"
)
_MISMATCH = "placeholders and features of the pictures do not match, so nothing is pruned"
_UNKNOWN_PROMPT = (
    "it is unknown where the prompt ends, because labels (or wanted logits) begin before the last "
    "picture ends; text is read from the last token of the sample. Pass prompt_length= in the call"
)
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Changed = tuple[Args, Kwargs] | None
# What a call of `generate` runs by, which encodes pictures before its first forward.
_GENERATING: ContextVar[PatchConfig | None] = ContextVar("vtfast_generating", default=None)


class PatchHooks:
    """One patched model: what it was asked for, its hooks, the report of its last prefill."""

    def __init__(self, config: PatchConfig, parts: Parts) -> None:
        self.parts, self.config = parts, config  # which `set` replaces; a forward reads it once
        self.report: Report | None = None
        self._check_arguments()
        self._handles: list[RemovableHandle] = []
        # Layers, and the tower by what it is for; once and for all, so nothing is hooked again.
        self._hooked: frozenset[int | str] = frozenset()
        self._stand_ins = [
            StandIn(parts.multimodal, f"get_{kind}_features", partial(self._encode, kind))
            for kind in parts.family.kinds
        ]
        calls = {"prepare_inputs_for_generation": prepare_with_ids, "generate": self._generate}
        self._stand_ins += [StandIn(parts.model, name, call) for name, call in calls.items()]
        self._warned: set[str] = set()
        self._original = attention.plain(parts.text.config._attn_implementation)
        # Other attention knows nothing of our spans: every layer has to be handed its mask.
        shared = config.path == "packed" or parts.shares_attention
        self._hooks_all = self._original != "sdpa" or not shared
        self._expected = self._original if self._hooks_all else attention.NAME
        self._padded = Padded(parts.text.config, not self._hooks_all, parts.attends)
        self.packed = Packed(self._padded, always=config.impl == "triton")
        self._decide(config, parts.text.get_input_embeddings().weight)  # FSDP may leave no other

    def _decide(self, config: PatchConfig, like: Tensor) -> None:
        """Whether Triton's kernels run, and whether a forward may be packed, where tensors are like
        this one: at the patch, and again when the model has moved."""
        where = config.impl, config.path, like, self.parts.head_size
        why_not = kernel_limits.why_unsupported(config.stages.values(), *where)
        why = config, self.parts, self._original, why_not or ""
        self._always_padded = choose_layout.why_always_padded(*why)
        self._kernels, self.packed.kernel = why_not is not None, why_not == ""
        self._decided_for = like.device, like.dtype

    def _check_arguments(self) -> None:
        """Refuse a model whose parts do not take what the hooks read or change."""
        parts, common = self.parts, ("attention_mask", names.CACHE)
        embedded = (*common, "inputs_embeds")
        names.check_arguments(parts.model, *embedded, "labels", "logits_to_keep")
        names.check_arguments(parts.multimodal, *embedded, *parts.family.inputs)
        names.check_arguments(parts.text, *embedded)
        for layer in parts.layers:
            names.check_arguments(layer, *common, "position_embeddings")

    # -- in and out ----------------------------------------------------------------------------

    def install(self) -> None:
        """Add the hooks; on any failure none stays."""
        text = self.parts.text
        try:
            for stand_in in self._stand_ins:
                stand_in.install()
            for module in (self.parts.model, self.parts.multimodal):
                self._add(module.register_forward_pre_hook, self._multimodal_pre)
            self._add(self.parts.multimodal.register_forward_hook, self._multimodal_post)
            self._add(text.register_forward_pre_hook, self._text_pre)
            self._add(text.register_forward_hook, self._text_post)
            self._handles.append(self.parts.rotary.register_forward_hook(_as_list))
            self._hook(self.config, self._hooks_all)
            if not self._hooks_all:
                attention.register()
                text.set_attn_implementation(attention.NAME)
        except BaseException:
            self.remove()
            raise

    def set(self, config: PatchConfig) -> None:
        """Run this plan from the next prefill on; nothing has changed when it is refused."""
        where = self.parts.text.get_input_embeddings().weight, self.parts.head_size
        kernel_limits.why_unsupported(config.stages.values(), config.impl, config.path, *where)
        self._hook(config)
        self.config = config

    def _hook(self, config: PatchConfig, every_layer: bool = False) -> None:
        """Hook what a plan needs and no plan before it did, until `remove`."""
        layers = frozenset(range(len(self.parts.layers))) if every_layer else config.due
        tower = config.needs & {"vision_scores"}
        if not layers | tower <= self._hooked:  # a lock cannot be compiled
            with attention.LOCK:
                if tower - self._hooked:
                    self._handles += self.parts.family.watch_tower(self.parts.multimodal)
                for i in layers - self._hooked:
                    self._add(self.parts.layers[i].register_forward_pre_hook, self._layer_pre, i)
                self._hooked |= layers | tower

    def remove(self) -> None:
        """Take every hook out and restore the attention implementation; idempotent."""
        text = self.parts.text
        with attention.LOCK:
            for stand_in in self._stand_ins:
                stand_in.remove()
            if self._handles and text.config._attn_implementation == attention.NAME:
                text.set_attn_implementation(self._original)
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def _add(self, register: Callable[..., Any], hook: Callable[..., Any], *args: Any) -> None:
        hook = partial(hook, *args) if args else hook
        self._handles.append(register(hook, with_kwargs=True))

    # -- hooks ---------------------------------------------------------------------------------

    def _config_for(self, state: CacheState | None) -> PatchConfig:
        """What a call runs by: what its cache was made by, else what its `generate` began with,
        else what was set last."""
        now, of_cache = self.config, state.config if state else None
        if of_cache is now:
            return now
        begun = None if torch.compiler.is_compiling() else _GENERATING.get()
        for config in (of_cache, begun):
            if config is not None and config.patch == now.patch:
                self._hook(config)  # a copy of the model may not have run it yet
                return config
        return now

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """`generate`, which runs by one plan from the encoding of its pictures on."""
        token = _GENERATING.set(self._config_for(state_of(names.given_cache(kwargs))))
        try:
            return original(*args, **kwargs)
        finally:
            _GENERATING.reset(token)

    def _multimodal_pre(self, module: nn.Module, args: Args, kwargs: Kwargs) -> Changed:
        """Find the visual tokens of a call. Runs on the model with the head, before accelerate's
        hooks rebuild the tower's output, and on the one without it, for callers of that."""
        if VISUAL in kwargs:
            return None
        call = _by_name(module, args, kwargs)
        prompt_length = call.pop("prompt_length", None)
        cache = names.given_cache(call)
        config = self._config_for(state_of(cache))
        sources = self.parts.family.sources(self.parts.multimodal, call, config.needs)
        merged = call.pop(PROMPT_IDS, None) is not None
        if not sources:
            embeds = call.get("inputs_embeds")
            if embeds is not None and embeds.shape[1] > 1:
                self._warn_once(_UNSEEN_PICTURES)
            return (), call
        validation.check_not_exporting()
        chunk = sources[0].placeholder.shape[1]
        mask = validation.plain_mask(call.get("attention_mask"), cache, chunk)
        mask, axes = None if mask is None else mask != 0, self.parts.family.position_axes
        read = read_call(call, sources, mask, axes, prompt_length)
        if not read.has_all_features:
            self._warn_once(_UNSEEN_PICTURES if merged else _MISMATCH)
            return (), call  # transformers raises, if it counts them as we do
        visual = locate(read, sources, mask)
        visual.config = config
        if any(stage.drops(visual.segments) for stage in config.stages.values()):
            validation.check_vision_scores(visual, config)
            validation.check_packed_samples(read, call, cache, self.parts.text)
            call = self._settle(read, call, visual, config)
        return (), {**call, VISUAL: visual}

    def _settle(self, read: Call, call: Kwargs, found: VisualTokens, config: PatchConfig) -> Kwargs:
        """Where prompts end, and which labels count."""
        keep = call.get("logits_to_keep")
        validation.check_last_tokens(read, keep, config)
        found.after_prompt, unknown = tokens_after_prompt(read, keep)
        if unknown and config.needs & {"scores", "text"}:
            self._warn_once(_UNKNOWN_PROMPT)
        call, ignored = ignore_unpredictable(call, read)
        if ignored:
            said = f"{ignored} labels would be predicted from visual tokens or padding"
            if config.strict_labels:
                raise InputError(f"{said}, which may be dropped; set them to -100")
            self._warn_once(f"{said}; they are ignored (strict_labels=True refuses them)")
        return call

    def _warn_once(self, message: str) -> None:
        """Warn, once for each kind of message: figures in it do not count."""
        kind = message.lstrip("0123456789")
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

    def _multimodal_post(self, module: nn.Module, args: Args, kwargs: Kwargs, out: Any) -> None:
        if VISUAL in kwargs and not kwargs[VISUAL].arrived:
            raise names.unsupported("does not pass keywords on to its language model", module)

    def _encode(self, kind: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The features of pictures, and with them what they were made from."""
        kwargs.pop(VISUAL, None)  # some families hand all their keyword arguments to the tower
        call, make = _by_name(original, args, kwargs), partial(original, *args, **kwargs)
        needs = self._config_for(None).needs
        return self.parts.family.encode(self.parts.multimodal, kind, call, make, needs)

    def _text_pre(self, module: Any, args: Args, kwargs: Kwargs) -> Changed:
        if (now := module.config._attn_implementation) != self._expected:
            if not (self._expected == attention.NAME and now == "sdpa"):
                raise StateError(
                    f"the attention implementation was changed to {now!r} while the model is "
                    "patched; call vtfast.unpatch(model), set it, and patch again"
                )
            module.set_attn_implementation(attention.NAME)  # a model on its config was unpatched
        gather: Any = getattr(self.parts.norm, "unshard", None)
        if gather is not None:  # FSDP2 shards the norm apart: all processes gather it now, since a
            gather()  # method may call it in some of them alone
        kwargs = _by_name(module, args, kwargs)
        visual: VisualTokens | None = kwargs.pop(VISUAL, None)
        if visual is not None:
            visual.arrived = True
        cache = names.given_cache(kwargs)
        state = state_of(cache)
        if visual is None and not (state and state.stages):
            return None
        config = (visual and visual.config) or self._config_for(state)
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:  # the text model called by itself, to go on with a pruned cache
            embeds = kwargs["inputs_embeds"] = module.embed_tokens(kwargs.pop("input_ids"))
        chunk = embeds.shape[1]
        if state is None:
            validation.check_cache(cache)
        given = kwargs.get("attention_mask")
        mask = visual.mask if visual else validation.plain_mask(given, cache, chunk)
        # A chunk of text on a pruned cache. With one token a mask on a GPU is not read back.
        some = mask is None or mask.device.type != "cpu" or (mask[:, -1] != 0).numpy().all()
        if visual is None and (chunk > 1 or not some):
            mask = None if mask is None else mask != 0
            visual = of_text(mask, *embeds.shape[:2])
        if visual is not None:
            validation.check_turn(visual, cache, chunk, config.positions)
        if (embeds.device, embeds.dtype) != self._decided_for:
            self._decide(config, embeds)
        given = config, self.parts, self._always_padded, embeds, visual, kwargs
        packed, reason = choose_layout.is_packed(*given)
        layout = self.packed if packed else self._padded
        every_layer = self._hooks_all or may_run_again(module)
        if every_layer:
            self._hook(config, every_layer)
        what = embeds.shape[:2], visual, mask, layout, config, self.parts
        kernels = self._kernels and not torch.is_grad_enabled()
        forward = ForwardState(*what, reason=reason, every_layer=every_layer, kernels=kernels)
        if visual and kwargs.get(names.DEEPSTACK[1]) is not None:
            forward.add_between(*(kwargs[name] for name in names.DEEPSTACK))
            kwargs |= dict.fromkeys(names.DEEPSTACK)
        drops = visual and config.stages[0].drops(visual.segments)
        if drops or forward.rearranges or (state and 0 in state.stages):
            # Every layer gets our mask or none. transformers passes a 4-D mask on as it is, so with
            # this one it does not build its own.
            kwargs["attention_mask"] = embeds.new_zeros(1, 1, 1, 1)
        return (), {**kwargs, STATE: forward}

    def _layer_pre(self, number: int, module: nn.Module, args: Args, kwargs: Kwargs) -> Changed:
        forward: ForwardState | None = kwargs.get(STATE)
        if forward is None:
            state = state_of(names.given_cache(kwargs))
            if state is not None and state.stages:
                problem = "was handed a pruned cache that the model was not called with"
                raise names.unsupported(problem, module)
            return None
        if not forward.every_layer and number not in forward.config.due:
            return None
        if self._hooks_all:  # third-party attention functions do not know it
            kwargs = {k: v for k, v in kwargs.items() if k != STATE}
        if not args:
            problem = "is not handed its hidden states as the first argument"
            raise names.unsupported(problem, module)
        hidden, kwargs = forward.enter(number, module, args[0], kwargs)
        return (hidden, *args[1:]), kwargs

    def _text_post(self, module: nn.Module, args: Args, kwargs: Kwargs, out: Any) -> Any:
        forward: ForwardState | None = kwargs.get(STATE)
        if forward is None:
            return None
        hidden = forward.finish(out[0])
        if forward.tokens is not None:
            self.report = forward.report()
        if isinstance(out, tuple):
            return (hidden, *out[1:])
        out["last_hidden_state"] = hidden
        if out.get("hidden_states") is not None:  # its last entry is the last hidden state
            out["hidden_states"] = (*out["hidden_states"][:-1], hidden)
        return out


def _by_name(called: Any, args: Args, kwargs: Kwargs) -> Kwargs:
    """The arguments of a call of a module or a function, all by keyword, in a dict of ours."""
    names = signature(getattr(called, "forward", called)).parameters if args else ()
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _as_list(module: nn.Module, args: Any, out: tuple[Tensor, ...]) -> RotaryRows:
    """(cos, sin) as a list: every layer gets this one object, which a stage rewrites."""
    if isinstance(out, Tensor) or len(out) != 2:
        raise UnsupportedModelError(
            f"{type(module).__name__} does not return (cos, sin), which vtfast has to shorten; "
            "call vtfast.unpatch(model): language models of this kind cannot be pruned"
        )
    return RotaryRows(out)
