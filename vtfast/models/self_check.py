"""Check on a tiny model that vtfast works with the transformers release that is installed.

vtfast reads and changes what transformers' models hand to their parts, which a release may rename
or reorder. A release in `TESTED` has passed the model tests. Any other is checked before a process
first patches a kind of model. A tiny random model of that class runs pruned in both layouts, with
two padded samples of one and two pictures, with and without a KV cache; one sample without padding,
in plain calls of several tokens; beams; and drafts that are cropped off again. Logits must be those
of the full sequence with the dropped tokens masked out, computed layer by layer without vtfast.

It does not try positions="renumber", static caches, videos, right padding, or attention
implementations other than SDPA and eager.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedConfig

from vtfast.errors import InputError, UnsupportedModelError, UnsupportedVersionError
from vtfast.models.base import TESTED_TEXT_MODELS, Family
from vtfast.prune import Prune
from vtfast.runtime import attention
from vtfast.runtime.names import TESTED, cache_argument, returned_cache

VARIABLE = "VTFAST_SELF_CHECK"  # always: tested releases too; auto: others; never

# Patches a model with stages and a path, and gives a handle to use in a `with` statement.
Patch = Callable[[Any, list[Prune], str], AbstractContextManager[Any]]

_PAD, _START, _IMAGE = 0, 1, 90
_NEW = 3  # tokens generated: a prefill and two steps
_TOLERANCE = 1e-3  # of logits of size 10; rounding gives 1e-5, a token too many or too few 0.1
_BY_SCORES = [Prune(0, "diversity", 0.75), Prune(2, "topk", 0.5)]
_LATE = [Prune(2, "random", 0.5)]
_passed: set[tuple[object, ...]] = set()


def check_release(
    family: Family,
    cls: type,
    config: PreTrainedConfig,
    patch: Patch,
    implementation: str = "sdpa",
    path: str = "packed",
) -> None:
    """Run the self-check if it is due for this kind of model in this process.

    A kind is a class of transformers (a derived class counts as its base), the types of its text
    model and vision tower, and the attention implementation. A text model vtfast was never
    tested with is tried in the padded layout alone unless `path` is "packed".

    Raises UnsupportedVersionError where the self-check fails, before anything is changed.
    """
    mode = os.environ.get(VARIABLE, "auto")
    if mode not in ("always", "auto", "never"):
        raise InputError(f"{VARIABLE}={mode!r}; set it to 'always', 'auto' or 'never'")
    if mode == "never" or (mode == "auto" and transformers.__version__ in TESTED):
        return
    text = config.get_text_config().model_type
    packed = path == "packed" or text in TESTED_TEXT_MODELS
    kind = (cls.__name__, text, config.vision_config.model_type, implementation, packed)
    with attention.LOCK:  # one check at a time; other threads wait for its result
        if kind in _passed:
            return
        started = time.perf_counter()
        self_check(family, cls, config, patch, implementation, packed)
        _passed.add(kind)
        seconds = time.perf_counter() - started
    note = "" if implementation in ("sdpa", "eager") else f"; {implementation!r} itself not tried"
    logging.getLogger("vtfast").info(
        "self-check of %s on transformers %s passed in %.1f s%s",
        *(cls.__name__, transformers.__version__, seconds, note),
    )


def self_check(
    family: Family,
    cls: type,
    config: PreTrainedConfig,
    patch: Patch,
    implementation: str = "sdpa",
    packed: bool = True,
) -> None:
    """Compare a tiny pruned model with the masked full sequence; see the module.

    Only the types of text model and vision tower are read from `config`. Raises
    UnsupportedVersionError naming what differs. Leaves random states, defaults and transformers'
    registries as they were.
    """
    release, doing = f"transformers {transformers.__version__}", ""
    with _undisturbed():
        try:
            model = _tiny_model(cls, family.tiny(config))
            batch, alone = (_Trial(family, model, patch, pictures) for pictures in (3, 1))
            alone.run_unpatched()
        except Exception as error:
            raise UnsupportedVersionError(
                f"{release} is not a release vtfast was tested with ({', '.join(TESTED)}), and it "
                f"could not be checked here: a tiny {cls.__name__} does not run unpatched "
                f"({error}). Install a tested release, patch where the tiny model can run, or set "
                f"{VARIABLE}=never to patch without a check"
            ) from error
        try:
            for path in ("padded", "packed") if packed else ("padded",):
                eager = path == "padded" and implementation == "eager"
                model.set_attn_implementation("eager" if eager else "sdpa")
                for doing, run in _runs(batch, alone, path):
                    doing = f"{path} layout, {doing}"
                    run()
        except Exception as error:
            raise UnsupportedVersionError(
                f"{release} does not work as vtfast needs it to: in the self-check of "
                f"{cls.__name__} ({doing}): {error}. Nothing was changed; install a tested release "
                f"({', '.join(TESTED)})"
            ) from error


def _runs(batch: "_Trial", alone: "_Trial", path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is tried in one layout, by name."""
    # No scores without a cache: they would be those of the newest token.
    yield "with a KV cache and scores", lambda: batch.generate(_BY_SCORES, path, use_cache=True)
    yield "with a KV cache", lambda: batch.generate(_LATE, path, use_cache=True)
    yield "without a KV cache", lambda: batch.generate(_LATE, path, use_cache=False)
    yield "plain calls without padding", lambda: alone.call(_LATE, path)
    yield "beams", lambda: alone.compare_beams(_LATE, path)
    yield "drafts", lambda: alone.compare_drafts(_LATE, path)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run in fp32 on the CPU whatever the caller's defaults; afterwards they are as before."""
    dtype, registered = torch.get_default_dtype(), attention.is_registered()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]))
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


def _inputs(family: Family, model: Any, pictures: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a batch, and int64 [B, n]: the picture that each column belongs to, 0 for text.

    With one picture the batch is one sample. With three it is two samples, of one and of two
    pictures, padded on the left. The end of the first repeats its start, so that prompt lookup
    finds drafts.
    """
    sizes, tensors = family.tiny_pictures(pictures)
    before, after = ([(t, 0) for t in family.around_picture[i : i + 1]] for i in (0, 1))
    visual = [[*before, *[(_IMAGE, number)] * size, *after] for number, size in enumerate(sizes, 1)]
    text = [(token, 0) for token in (_START, 7, 8, 9, 10)]
    samples = [[*text, *visual[0], *text[1:3]]]
    if pictures > 1:
        samples.append([*text[:2], *visual[1], text[3], *visual[2], text[4]])
    longest = max(map(len, samples))
    padded = torch.tensor([[(_PAD, 0)] * (longest - len(s)) + s for s in samples])
    ids, picture = padded.unbind(-1)
    inputs = {"input_ids": ids, **tensors}
    if pictures > 1:
        inputs["attention_mask"] = (ids != _PAD).long()
    if "mm_token_type_ids" in signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (picture > 0).int()
    return inputs, picture


class _Trial:
    """A tiny model and one batch with `pictures` pictures, pruned and checked in several ways."""

    def __init__(self, family: Family, model: Any, patch: Patch, pictures: int) -> None:
        self.family, self.model, self.patch = family, model, patch
        self.parts = family.parts(model)
        self.inputs, self.picture = _inputs(family, model, pictures)

    def run_unpatched(self) -> None:
        """Raise what the model itself raises."""
        self._generate(self.inputs, 1)

    def generate(self, stages: list[Prune], path: str, use_cache: bool) -> None:
        """Raise ValueError unless a pruned generation has the masked full sequence's logits."""
        if not self._can_score():
            stages = [stage for stage in stages if stage.method != "topk"]
        with self.patch(self.model, stages, path) as handle:
            out = self._generate(self.inputs, _NEW, use_cache=use_cache)
            report = self._report(handle, path)
        self._check(torch.stack(out.logits, 1), out.sequences[:, :-1], stages, report)

    def call(self, stages: list[Prune], path: str) -> None:
        """The same for plain calls, one of them with several tokens on a pruned cache; they must
        keep the same tokens as `generate`."""
        more = torch.tensor([[13, 14]])
        with self.patch(self.model, stages, path) as handle:
            first = self.model(**self.inputs, use_cache=True)
            report = self._report(handle, path)
            cache = {cache_argument(): returned_cache(first)}
            then = self.model(input_ids=more, use_cache=True, **cache)
            self._generate(self.inputs, 1)
            again = self._report(handle, path)
        logits = torch.cat([first.logits[:, -1:], then.logits], 1)
        self._check(logits, torch.cat([self.inputs["input_ids"], more], 1), stages, report)
        for layer, kept in report.kept.items():
            if not all(map(torch.equal, kept, again.kept[layer])):
                raise ValueError("`generate` and a plain call keep different tokens of a picture")

    def compare_beams(self, stages: list[Prune], path: str) -> None:
        """Raise ValueError unless beams give the same tokens with and without a KV cache."""
        with self.patch(self.model, stages, path):
            found = [
                self._generate(self.inputs, _NEW + 1, num_beams=2, use_cache=use_cache).sequences
                for use_cache in (True, False)
            ]
        if not torch.equal(*found):
            raise ValueError("beams give different tokens with and without a KV cache")

    def compare_drafts(self, stages: list[Prune], path: str) -> None:
        """Raise ValueError unless drafts, which are cropped off the cache, change nothing."""
        with self.patch(self.model, stages, path):
            found = [
                self._generate(self.inputs, 2 * _NEW, **how).sequences
                for how in ({}, {"prompt_lookup_num_tokens": 2})
            ]
        if not torch.equal(*found):
            raise ValueError("prompt lookup gives other tokens than greedy decoding")

    def _generate(self, inputs: dict[str, Tensor], new: int, **how: Any) -> Any:
        return self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new,
            output_logits=True,
            return_dict_in_generate=True,
            synced_gpus=False,  # other processes of a job do not take part
            **how,
        )

    def _can_score(self) -> bool:
        try:
            self.family.check_scores(self.model)
        except UnsupportedModelError:
            return False
        return True

    def _report(self, handle: Any, path: str) -> Any:
        report = handle.report
        if report is None:
            raise ValueError("no visual token was found, so none was pruned")
        if report.path != path:
            raise ValueError(f"the {report.path} layout was used ({report.path_reason})")
        return report

    def _check(self, logits: Tensor, ids: Tensor, stages: list[Prune], report: Any) -> None:
        """logits: [B, T, vocabulary] from the prompt's last token on; ids: [B, n + T - 1]."""
        self._embed(ids)
        gone: dict[int, Tensor] = {}  # layer -> bool [B, n], tokens lost at its input
        for stage in stages:
            gone[stage.layer] = self._dropped(stage, report.kept.get(stage.layer), gone)
        wrong = (logits - self._logits(gone)).abs().max().item()
        if not wrong <= _TOLERANCE:
            raise ValueError(f"logits differ from those of the masked sequence by {wrong:.2g}")

    def _embed(self, ids: Tensor) -> None:
        """Record what enters layer 0 of the unpatched model for the prompt and the tokens after it.

        Raises ValueError if layers called one by one do not give that model's logits.
        """
        new = ids.shape[1] - self.picture.shape[1]
        mask = self.inputs.get("attention_mask", torch.ones_like(self.picture))
        mask = torch.nn.functional.pad(mask, (0, new), value=1)
        whole = {**self.inputs, "input_ids": ids, "attention_mask": mask}
        if "mm_token_type_ids" in whole:
            whole["mm_token_type_ids"] = self._columns(self.picture, new).gt(0).int()
        self.valid = mask.bool()

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.embedded, self.rotary = args[0], tuple(kwargs["position_embeddings"])

        hook = self.parts.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        try:
            unpruned = self._generate(whole, 1, use_cache=False)
        finally:
            hook.remove()
        if not (self._logits({})[:, -1] - unpruned.logits[0]).abs().max() <= _TOLERANCE:
            raise ValueError("decoder layers called one by one differ from the whole model")

    def _dropped(
        self, stage: Prune, kept: tuple[Tensor, ...] | None, gone: dict[int, Tensor]
    ) -> Tensor:
        """bool [B, n]: tokens that this stage drops; `kept`: the columns it keeps of each sample.

        Raises ValueError if it keeps a wrong number of tokens, or not those with the best scores.
        """
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
                raise ValueError(
                    f"layer {stage.layer - 1} attends more to tokens that were dropped"
                )
        return before & ~after

    def _scores(self, layer: int, gone: dict[int, Tensor]) -> Tensor:
        """[B, n]: attention that the prompt's last token pays at this layer, mean over heads."""
        weights: list[Tensor] = []
        block: Any = self.parts.layers[layer]
        hook = block.self_attn.register_forward_hook(lambda *call: weights.append(call[2][1]))
        text: Any = self.parts.text
        before = text.config._attn_implementation
        text.set_attn_implementation("eager")
        try:
            self._hidden(layer + 1, gone)
        finally:
            hook.remove()
            text.set_attn_implementation(before)
        prompt = self.picture.shape[1]
        return weights[0].mean(1)[:, prompt - 1, :prompt]

    def _logits(self, gone: dict[int, Tensor]) -> Tensor:
        """[B, T, vocabulary]."""
        hidden = self._hidden(len(self.parts.layers), gone)[:, self.picture.shape[1] - 1 :]
        return self.model.get_output_embeddings()(self.parts.norm(hidden))

    def _hidden(self, layer: int, gone: dict[int, Tensor]) -> Tensor:
        """What enters a layer, [B, n, D]: nothing is removed, dropped tokens are masked out."""
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
        """[B, prompt] → [B, prompt + new], zeros for the new tokens."""
        return torch.nn.functional.pad(of_prompt, (0, new))
