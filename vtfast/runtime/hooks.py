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
from vtfast.runtime.kv_cache import state_of
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
Kwargs = dict[str, Any]


class PatchHooks:
    """One patched model: what it was asked for, its hooks, the report of its last prefill."""

    def __init__(self, config: PatchConfig, parts: Parts) -> None:
        self.parts = parts
        self.report: Report | None = None
        self._check_arguments()
        self._handles: list[RemovableHandle] = []
        self._hooked_all = False
        encode = {
            f"get_{kind}_features": partial(self._encode, kind) for kind in parts.family.kinds
        }
        self._stand_ins = [StandIn(parts.multimodal, name, call) for name, call in encode.items()]
        prepare = "prepare_inputs_for_generation"
        self._stand_ins.append(StandIn(parts.model, prepare, prepare_with_ids))
        self._warned: set[str] = set()
        self._original = attention.plain(parts.text.config._attn_implementation)
        self._first = next(iter(config.stages.values()))  # of the plan
        self.config = config = config.starting_at_layer_0()
        self._due = config.scored_layers | set(config.stages) | set(range(1, parts.added + 1))
        # Other attention knows nothing of our spans: every layer has to be handed its mask.
        shared = config.path == "packed" or parts.shares_attention
        self._hooks_all = self._original != "sdpa" or not shared
        self._expected = self._original if self._hooks_all else attention.NAME
        self._padded = Padded(parts.text.config, not self._hooks_all, parts.attends)
        self.packed = Packed(self._padded, always=config.impl == "triton")
        self._decide(parts.text.get_input_embeddings().weight)  # FSDP may leave none inside

    def _decide(self, like: Tensor) -> None:
        """Whether Triton's kernels run, and whether a forward may be packed, where tensors are like
        this one: at the patch, and again when the model has moved."""
        stages, head_size = self.config.stages.values(), self.parts.head_size
        where = self.config.impl, self.config.path, like, head_size
        why_not = kernel_limits.why_unsupported(stages, *where)
        why = self.config, self.parts, self._original, why_not or ""
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
            if "vision_scores" in self.config.needs:
                self._handles += self.parts.family.watch_tower(self.parts.multimodal)
            for i in self._due:
                self._add(self.parts.layers[i].register_forward_pre_hook, self._layer_pre, i)
            if self._hooks_all:
                self._hook_all_layers()
            else:
                attention.register()
                text.set_attn_implementation(attention.NAME)
        except BaseException:
            self.remove()
            raise

    def _hook_all_layers(self) -> None:
        """Hook the layers without a stage too, from the first forward that needs it on."""
        with attention.LOCK:
            if not self._hooked_all:
                self._hooked_all = True
                for i in set(range(len(self.parts.layers))) - self._due:
                    self._add(self.parts.layers[i].register_forward_pre_hook, self._layer_pre, i)

    def remove(self) -> None:
        """Take every hook out and restore the attention implementation; idempotent."""
        text = self.parts.text
        for stand_in in self._stand_ins:
            stand_in.remove()
        if self._handles and text.config._attn_implementation == attention.NAME:
            text.set_attn_implementation(self._original)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked_all = False

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    def _add(self, register: Callable[..., Any], hook: Callable[..., Any], *args: Any) -> None:
        hook = partial(hook, *args) if args else hook
        self._handles.append(register(hook, with_kwargs=True))

    # -- hooks ---------------------------------------------------------------------------------

    def _multimodal_pre(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[()], Kwargs] | None:
        """Find the visual tokens of a call. Runs on the model with the head, before accelerate's
        hooks rebuild the tower's output, and on the one without it, for callers of that."""
        if VISUAL in kwargs:
            return None
        call = _by_name(module, args, kwargs)
        prompt_length = call.pop("prompt_length", None)
        sources = self.parts.family.sources(self.parts.multimodal, call, self.config.needs)
        merged = call.pop(PROMPT_IDS, None) is not None
        cache = names.given_cache(call)
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
        if any(stage.drops(visual.segments) for stage in self.config.stages.values()):
            validation.check_vision_scores(visual, self.config)
            validation.check_packed_samples(read, call, cache, self.parts.text)
            call = self._settle(read, call, visual)
        return (), {**call, VISUAL: visual}

    def _settle(self, read: Call, call: Kwargs, visual: VisualTokens) -> Kwargs:
        """Where prompts end, and which labels count."""
        keep = call.get("logits_to_keep")
        validation.check_last_tokens(read, keep, self.config)
        visual.after_prompt, unknown = tokens_after_prompt(read, keep)
        if unknown and self.config.needs & {"scores", "text"}:
            self._warn_once(_UNKNOWN_PROMPT)
        call, ignored = ignore_unpredictable(call, read)
        if ignored:
            said = f"{ignored} labels would be predicted from visual tokens or padding"
            if self.config.strict_labels:
                raise InputError(f"{said}, which may be dropped; set them to -100")
            self._warn_once(f"{said}; they are ignored (strict_labels=True refuses them)")
        return call

    def _warn_once(self, message: str) -> None:
        """Warn, once for each kind of message: figures in it do not count."""
        kind = message.lstrip("0123456789")
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)

    def _multimodal_post(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs, out: Any
    ) -> None:
        if VISUAL in kwargs and not kwargs[VISUAL].arrived:
            raise names.unsupported(
                f"{type(module).__name__} does not pass keywords on to its language model"
            )

    def _encode(self, kind: str, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The features of pictures, and with them what they were made from."""
        kwargs.pop(VISUAL, None)  # some families hand all their keyword arguments to the tower
        call, make = _by_name(original, args, kwargs), partial(original, *args, **kwargs)
        return self.parts.family.encode(self.parts.multimodal, kind, call, make, self.config.needs)

    def _text_pre(
        self, module: Any, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[()], Kwargs] | None:
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
            validation.check_turn(visual, cache, chunk, self.config.positions)
        if (embeds.device, embeds.dtype) != self._decided_for:
            self._decide(embeds)
        given = self.config, module, self._always_padded, embeds, visual, kwargs
        packed, reason = choose_layout.is_packed(*given)
        layout = self.packed if packed else self._padded
        every_layer = self._hooks_all or may_run_again(module)
        if every_layer and not self._hooked_all:  # a lock cannot be compiled
            self._hook_all_layers()
        what = embeds.shape[:2], visual, mask, layout, self.config, self.parts
        kernels = self._kernels and not torch.is_grad_enabled()
        forward = ForwardState(*what, reason=reason, every_layer=every_layer, kernels=kernels)
        if visual and kwargs.get(names.DEEPSTACK[1]) is not None:
            forward.add_between(*(kwargs[name] for name in names.DEEPSTACK))
            kwargs |= dict.fromkeys(names.DEEPSTACK)
        drops = self._first.layer == 0 and visual and self._first.drops(visual.segments)
        if drops or forward.rearranges or (state and 0 in state.stages):
            # Every layer gets our mask or none. transformers passes a 4-D mask on as it is, so with
            # this one it does not build its own.
            kwargs["attention_mask"] = embeds.new_zeros(1, 1, 1, 1)
        return (), {**kwargs, STATE: forward}

    def _layer_pre(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs
    ) -> tuple[tuple[Any, ...], Kwargs] | None:
        forward: ForwardState | None = kwargs.get(STATE)
        if forward is None:
            state = state_of(names.given_cache(kwargs))
            if state is not None and state.stages:
                raise names.unsupported(
                    f"{type(module).__name__} was handed a pruned cache that "
                    f"{type(self.parts.text).__name__} was not called with"
                )
            return None
        if not forward.every_layer and number not in self._due:
            return None
        if self._hooks_all:  # third-party attention functions do not know it
            kwargs = {k: v for k, v in kwargs.items() if k != STATE}
        if not args:
            raise names.unsupported(
                f"{type(module).__name__} is not handed its hidden states as the first argument"
            )
        hidden, kwargs = forward.enter(number, module, args[0], kwargs)
        return (hidden, *args[1:]), kwargs

    def _text_post(self, module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs, out: Any) -> Any:
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


def _by_name(called: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
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
