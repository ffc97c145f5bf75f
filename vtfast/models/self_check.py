"""Does vtfast still fit the transformers installed here? A tiny model of the same class answers.

vtfast reads and changes what transformers' models hand to their parts, which a release may rename
or reorder. A release in `TESTED` has passed the model tests. Any other is neither trusted nor
refused blindly: before the first patch of a kind of model in a process, a tiny random model of its
class generates three tokens for two padded samples with one and two pictures, pruned in both
layouts, with and without a KV cache. The logits must be those of the full sequence with the dropped
tokens masked out, computed layer by layer without vtfast.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig

from vtfast.errors import InputError, UnsupportedModelError, UnsupportedVersionError
from vtfast.models.base import Family
from vtfast.prune import Prune
from vtfast.runtime import attention

TESTED = ("5.17.0", "5.23.0", "5.24.0")
VARIABLE = "VTFAST_SELF_CHECK"  # always: tested releases too; auto: others; never

# Patches a model with stages and a path, and gives a handle to use in a `with` statement.
Patch = Callable[[Any, list[Prune], str], AbstractContextManager[Any]]

_PAD, _START, _IMAGE, _VOCABULARY = 0, 1, 90, 96
_NEW = 3  # tokens generated: a prefill and two steps
_TOLERANCE = 1e-3  # of logits of size 10; rounding gives 1e-5, a token too many or too few 0.1
_SELECTED_EARLY = [Prune(0, "diversity", 0.75), Prune(2, "topk", 0.5)]
_SELECTED_LATE = [Prune(1, "random", 0.5)]
_passed: set[tuple[str, ...]] = set()


def check_release(family: Family, cls: type, config: PreTrainedConfig, patch: Patch) -> None:
    """Run the self-check for models of `cls` with `config` if it is due in this process.

    Raises UnsupportedVersionError where it fails, before anything is changed.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if mode not in ("always", "auto", "never"):
        raise InputError(f"{VARIABLE}={mode!r}; set it to 'always', 'auto' or 'never'")
    kind = (cls.__name__, config.get_text_config().model_type, config.vision_config.model_type)
    due = mode == "always" or (mode == "auto" and transformers.__version__ not in TESTED)
    if not due or kind in _passed:
        return
    started = time.perf_counter()
    self_check(family, cls, config, patch)
    _passed.add(kind)
    logging.getLogger("vtfast").info(
        "self-check of %s on transformers %s passed in %.1f s",
        *(cls.__name__, transformers.__version__, time.perf_counter() - started),
    )


def self_check(family: Family, cls: type, config: PreTrainedConfig, patch: Patch) -> None:
    """Compare a tiny pruned model with the masked full-length truth; see the module.

    `config` says of what types the text model and the vision tower are, no more. Raises
    UnsupportedVersionError naming what differs. Leaves random states, defaults and transformers'
    registries as they were.
    """
    doing = "building a tiny model"
    try:
        with _undisturbed():
            trial = _Trial(family, cls, config, patch)
            for path in ("padded", "packed"):
                for stages, use_cache in _runs(family, trial.model):
                    doing = f"{path} layout, {'with' if use_cache else 'without'} a KV cache"
                    trial.run(stages, path, use_cache)
    except Exception as error:
        raise UnsupportedVersionError(
            f"transformers {transformers.__version__} does not work as vtfast needs it to: in the "
            f"self-check of {cls.__name__} ({doing}): {error}. Nothing was changed; install a "
            f"tested release ({', '.join(TESTED)})"
        ) from error


def _runs(family: Family, model: Any) -> Iterator[tuple[list[Prune], bool]]:
    """Stages, and whether there is a cache. Without one, scores follow the newest token."""
    try:
        family.check_scores(model)
        yield _SELECTED_EARLY, True
    except UnsupportedModelError:
        yield _SELECTED_EARLY[:1], True
    yield _SELECTED_LATE, True
    yield _SELECTED_LATE, False


@contextmanager
def _undisturbed() -> Iterator[None]:
    """fp32 on the CPU whatever the caller's defaults are; everything is as before afterwards."""
    dtype, registered = torch.get_default_dtype(), attention.is_registered()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        if not registered:
            stack.callback(attention.unregister)
        torch.set_default_dtype(torch.float32)
        yield


def _tiny_model(cls: type, config: PreTrainedConfig) -> Any:
    """A random model whose attention is not flat, so that a wrong token shows in the logits."""
    model = cls(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            scale = 1.0 if "embed_tokens" in name else 0.25
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    head = model.get_output_embeddings().weight
    head[_IMAGE:] = 0  # never the best next token
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = _PAD
    return model


def _batch(family: Family, model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Two samples, padded on the left, with one picture and with two; and int64 [2, n], the number
    of the picture that each column belongs to, 0 for text."""
    (one, two, three), pictures = family.tiny_pictures()
    samples = [
        [(_START, 0), (5, 0), (6, 0), *[(_IMAGE, 1)] * one, (7, 0), (8, 0)],
        [(_START, 0), (9, 0), *[(_IMAGE, 2)] * two, (10, 0), *[(_IMAGE, 3)] * three, (11, 0)],
    ]
    longest = max(map(len, samples))
    padded = torch.tensor([[(_PAD, 0)] * (longest - len(s)) + s for s in samples])
    ids, picture = padded.unbind(-1)
    inputs = {"input_ids": ids, "attention_mask": (ids != _PAD).long(), **pictures}
    if "mm_token_type_ids" in signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (picture > 0).int()
    return inputs, picture


def _generate(model: Any, inputs: dict[str, Tensor], new: int, use_cache: bool) -> Any:
    return model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=new,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        synced_gpus=False,  # other processes of a job do not take part
    )


class _Trial:
    """One tiny model and one batch, pruned and checked in several ways."""

    def __init__(self, family: Family, cls: type, config: PreTrainedConfig, patch: Patch) -> None:
        self.family, self.patch = family, patch
        self.model = _tiny_model(cls, family.tiny(config))
        self.parts = family.parts(self.model)
        self.inputs, self.picture = _batch(family, self.model)

    def run(self, stages: list[Prune], path: str, use_cache: bool) -> None:
        """Raise ValueError unless a pruned generation has the masked full sequence's logits."""
        with self.patch(self.model, stages, path) as handle:
            out = _generate(self.model, self.inputs, _NEW, use_cache)
            report = handle.report
        if report is None:
            raise ValueError("no visual token was found, so none was pruned")
        if report.path != path:
            raise ValueError(f"the {report.path} layout was taken ({report.path_reason})")
        self._embed(out.sequences[:, :-1])
        gone: dict[int, Tensor] = {}  # layer -> bool [2, n], tokens lost at its input
        for stage in stages:
            gone[stage.layer] = self._dropped(stage, report.kept.get(stage.layer), gone)
        wrong = (torch.stack(out.logits, 1) - self._logits(gone)).abs().max().item()
        if not wrong <= _TOLERANCE:
            raise ValueError(f"logits differ from those of the masked sequence by {wrong:.2g}")

    def _embed(self, ids: Tensor) -> None:
        """What enters layer 0 for the prompt and the tokens after it, as the unpatched model has
        it; checks that layers called one by one give that model's logits."""
        new = ids.shape[1] - self.picture.shape[1]
        mask = torch.nn.functional.pad(self.inputs["attention_mask"], (0, new), value=1)
        whole = {**self.inputs, "input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in whole:
            whole["mm_token_type_ids"] = self._columns(self.picture, new).gt(0).int()
        self.valid = mask.bool()

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.embedded, self.rotary = args[0], tuple(kwargs["position_embeddings"])

        hook = self.parts.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            unpruned = _generate(self.model, whole, 1, use_cache=False)
        finally:
            hook.remove()
        if not (self._logits({})[:, -1] - unpruned.logits[0]).abs().max() <= _TOLERANCE:
            raise ValueError("decoder layers called one by one differ from the whole model")

    def _dropped(
        self, stage: Prune, kept: tuple[Tensor, ...] | None, gone: dict[int, Tensor]
    ) -> Tensor:
        """bool [2, n]: tokens that are gone from this stage's layer on, `kept` being columns."""
        before = (self.picture > 0) & ~sum(gone.values(), torch.zeros_like(self.picture)).bool()
        after = torch.zeros_like(before)
        for row, columns in zip(after, kept or (), strict=kept is not None):
            row[columns] = True
        scores = self._scores(stage.layer - 1, gone) if stage.method == "topk" else None
        for number in range(1, int(self.picture.max()) + 1):
            mine = self.picture == number
            stay, go = mine & after, mine & before & ~after
            expected = stage.count(int(mine.sum()), int((mine & before).sum()))
            if (after & ~before).any() or int(stay.sum()) != expected:
                raise ValueError(
                    f"the stage at layer {stage.layer} left {int(stay.sum())} of picture "
                    f"{number}'s tokens, not {expected}"
                )
            if scores is not None and scores[stay].min() < scores[go].max() - _TOLERANCE:
                raise ValueError(f"layer {stage.layer - 1} attends to other tokens than were kept")
        return before & ~after

    def _scores(self, layer: int, gone: dict[int, Tensor]) -> Tensor:
        """[2, n]: attention that the prompt's last token pays at this layer, mean over heads."""
        weights: list[Tensor] = []
        block: Any = self.parts.layers[layer]
        hook = block.self_attn.register_forward_hook(lambda *call: weights.append(call[2][1]))
        text: Any = self.parts.text
        text.set_attn_implementation("eager")
        try:
            self._hidden(layer + 1, gone)
        finally:
            hook.remove()
            text.set_attn_implementation("sdpa")
        prompt = self.picture.shape[1]
        return weights[0].mean(1)[:, prompt - 1, :prompt]

    def _logits(self, gone: dict[int, Tensor]) -> Tensor:
        """[2, tokens generated, vocabulary]."""
        hidden = self._hidden(len(self.parts.layers), gone)[:, self.picture.shape[1] - 1 :]
        return self.model.get_output_embeddings()(self.parts.norm(hidden))

    def _hidden(self, layer: int, gone: dict[int, Tensor]) -> Tensor:
        """What enters a layer, [2, n, D]: nothing is removed, dropped tokens are masked out."""
        hidden, seen = self.embedded, self.valid.clone()
        n = hidden.shape[1]
        lower = torch.ones(n, n, dtype=torch.bool).tril()
        for number, block in enumerate(self.parts.layers[:layer]):
            if number in gone:
                seen &= ~self._columns(gone[number], n - self.picture.shape[1])
            visible = (seen[:, None] & lower) | torch.eye(n, dtype=torch.bool)
            mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo().min)[:, None]
            hidden = block(
                hidden,
                attention_mask=mask,
                position_ids=None,
                position_embeddings=self.rotary,
            )
        return hidden

    @staticmethod
    def _columns(of_prompt: Tensor, new: int) -> Tensor:
        """[2, prompt] → [2, prompt + new], zeros for the new tokens."""
        return torch.nn.functional.pad(of_prompt, (0, new))
