"""Prompts with fewer places for a picture, and names in vLLM's caches that say why."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import PromptReplacement
from vllm.multimodal.processing.inputs import ProcessorInputs

from vtfast.errors import InputError
from vtfast.vllm.config import settings_of
from vtfast.vllm.settings import KEEP, Settings, as_keep

KINDS = ("image", "video")
_ROPE_ROWS = 4  # vLLM's M-RoPE has rows for so many times `max_position_embeddings`

_now: ContextVar[Settings | None] = ContextVar("vtfast_vllm", default=None)  # of this request
_made_up: ContextVar[bool] = ContextVar("vtfast_vllm_made_up", default=False)


@dataclass
class _Inputs(ProcessorInputs):
    """Inputs whose pictures vLLM's caches know by names that say how they are pruned; those that a
    client gives them too."""

    settings: Settings | None = None

    def get_mm_hashes(self, *args: Any) -> dict[str, list[str]]:
        found = super().get_mm_hashes(*args)
        return {k: [f"{one}-vtfast-{self.settings}" for one in own] for k, own in found.items()}


class PruningProcessor:
    """Mixed into a multimodal processor of vLLM."""

    def tokens_of(self, kind: str, items: Any, number: int, kwargs: Mapping[str, object]) -> int:
        """Visual tokens of a picture of a request, before any pruning."""
        raise NotImplementedError

    def tokens_in(self, kind: str, fields: Any, stock: int) -> int:
        """Visual tokens of a processed picture, before any pruning. stock: vLLM's own number."""
        return stock

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Prompts that vLLM makes up to measure memory: pictures and nothing else."""
        with _set(_made_up, True):
            return super().get_dummy_mm_inputs(*args, **kwargs)  # type: ignore[misc]

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Everything is refused here, before the stock method: once that has noted a picture as
        sent, a refusal would leave vLLM's two caches apart, and the next request with the picture
        would die of it."""
        asked = dict(inputs.hf_processor_mm_kwargs)
        keep = asked.pop(KEEP, None)
        for name in asked:
            if name.startswith("vtfast"):
                raise InputError(f"{name} is unknown; what a request can set is {KEEP}")
        settings = settings_of(self.info.get_hf_config())  # type: ignore[attr-defined]
        if settings is None and keep is not None:
            raise InputError(f"{KEEP}={keep!r}: this server does not prune; leave it out")
        if settings is not None:
            settings = settings if keep is None else _with_keep(settings, keep)
            given = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
            inputs = _Inputs(**{**given, "hf_processor_mm_kwargs": asked})
            if _made_up.get():
                settings = settings.with_keep(1.0)  # the most that a request may ask for
            else:
                self._check(inputs, settings)
            inputs.settings = settings
        with _set(_now, settings):
            return super().apply(inputs, *args, **kwargs)  # type: ignore[misc]

    def _check(self, inputs: Any, settings: Settings) -> None:
        items, prompt = inputs.mm_data_items, inputs.prompt
        counts = [(kind, items.get_all_counts().get(kind, 0)) for kind in KINDS]
        total = sum(number for _, number in counts)
        if not total:
            return
        for kind, number in counts:
            if number and isinstance(items[kind], EmbeddingItems | DictEmbeddingItems):
                raise InputError(f"{kind}s came as embeddings; with pruning pass the pictures")
        config = self.info.get_hf_config()  # type: ignore[attr-defined]
        stand_ins = sum(token in placeholders(config) for token in prompt)
        if stand_ins != total:
            raise InputError(
                f"the prompt has {stand_ins} tokens that stand for a picture, and {total} came; "
                "with pruning such a token cannot be text"
            )
        if settings.stage.keep == 1.0:
            return
        if prompt[-1] in placeholders(config):
            raise InputError(
                "the prompt ends in a picture, whose last token may be dropped; put text after it"
            )
        if settings.positions == "keep":
            tokens = [
                self.tokens_of(kind, items[kind], number, inputs.hf_processor_mm_kwargs)
                for kind, count in counts
                for number in range(count)
            ]
            self._check_positions(len(prompt) - len(tokens), tokens, settings)

    def _check_positions(self, text: int, tokens: Sequence[int], settings: Settings) -> None:
        """Tokens keep their places, so that a prompt reaches further than it is long."""
        model = self.info.ctx.model_config  # type: ignore[attr-defined]
        rows = _ROPE_ROWS * model.hf_text_config.max_position_embeddings
        left = text + sum(map(settings.count, tokens))
        generated = max(0, model.max_model_len - left)
        if text + sum(tokens) + generated > rows:
            raise InputError(
                f"the prompt had {text + sum(tokens)} tokens before pruning and {generated} may "
                f"follow, but the model has places for {rows}; pass fewer or smaller pictures"
            )

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        out = super()._apply_hf_processor_main(mm_items, hf_kwargs)  # type: ignore[misc]
        settings = _now.get()
        if settings is not None:
            for kind, number in mm_items.get_all_counts().items():
                keep = [float(settings.stage.keep)] * number
                if number:
                    out[f"{KEEP}_{kind}"] = torch.tensor(keep, dtype=torch.float64)
        return out

    def _get_mm_fields_config(self, hf_inputs: Any, *args: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, *args)  # type: ignore[misc]
        own = {
            f"{KEEP}_{kind}": MultiModalFieldConfig.batched(kind, keep_on_cpu=True)
            for kind in KINDS
            if f"{KEEP}_{kind}" in hf_inputs
        }
        return {**fields, **own}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Any:
        given = mm_items, hf_processor_mm_kwargs, out_mm_kwargs
        updates = super()._get_prompt_updates(*given)  # type: ignore[misc]
        settings = _now.get()
        if settings is None:
            return updates
        return [
            PromptReplacement(
                modality=update.modality,
                target=update.target,
                replacement=partial(self._fewer, settings, update, out_mm_kwargs),
            )
            for update in updates
        ]

    def _fewer(self, settings: Settings, update: Any, out_mm_kwargs: Any, item: int) -> list[int]:
        full = update.replacement(item)
        tokens = self.tokens_in(update.modality, out_mm_kwargs[update.modality][item], len(full))
        return [full[0]] * settings.count(tokens)


def placeholders(config: Any) -> tuple[int, ...]:
    """The tokens that stand for visual tokens in a prompt."""
    names = ("image_token_id", "video_token_id", "image_token_index")
    return tuple({getattr(config, name) for name in names if hasattr(config, name)})


def counted(settings: Settings, keep: float, tokens: int) -> int:
    """How many of a picture's tokens stay, by the field of the picture."""
    return settings.with_keep(keep).count(tokens)


def _with_keep(settings: Settings, keep: object) -> Settings:
    try:
        as_keep(keep)
    except InputError as error:
        raise InputError(str(error).replace("keep=", f"{KEEP}=", 1)) from None
    return settings.with_keep(keep)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
