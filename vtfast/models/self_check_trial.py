"""A tiny random model of one class, pruned in several ways and checked against the truth."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig

from vtfast.errors import UnsupportedModelError
from vtfast.models.base import Family
from vtfast.models.masked_sequence import TOLERANCE, Gone, MaskedSequence, generate
from vtfast.prune import Prune
from vtfast.runtime.names import cache_argument, returned_cache

# Patches a model with stages and a path, and gives a handle to use in a `with` statement.
Patch = Callable[[Any, list[Prune], str], AbstractContextManager[Any]]

_PAD, _START, _IMAGE = 0, 1, 90
_NEW = 3  # tokens generated: a prefill and two steps
_BY_SCORES = [Prune(0, "diversity", 0.75), Prune(2, "topk", 0.5)]
_LATE = [Prune(2, "random", 0.5)]


def tiny_model(cls: type, config: PreTrainedConfig) -> Any:
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
    around = [(token, 0) for token in family.around_picture]
    before, after = around[:-1], around[-1:]
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


class Trial:
    """A tiny model and one batch with `pictures` pictures, pruned and checked in several ways."""

    def __init__(self, family: Family, model: Any, patch: Patch, pictures: int) -> None:
        self.family, self.model, self.patch = family, model, patch
        self.parts = family.parts(model)
        self.inputs, self.picture = _inputs(family, model, pictures)

    def run_unpatched(self) -> None:
        """Raise what the model itself raises."""
        generate(self.model, self.inputs, 1)

    def generate(self, stages: list[Prune], path: str, use_cache: bool) -> None:
        """Raise ValueError unless a pruned generation has the masked full sequence's logits."""
        if not self._can_score():
            stages = [stage for stage in stages if stage.method != "topk"]
        with self.patch(self.model, stages, path) as handle:
            out = generate(self.model, self.inputs, _NEW, use_cache=use_cache)
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
            generate(self.model, self.inputs, 1)
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
                generate(self.model, self.inputs, _NEW, num_beams=2, use_cache=cached).sequences
                for cached in (True, False)
            ]
        if not torch.equal(*found):
            raise ValueError("beams give different tokens with and without a KV cache")

    def compare_drafts(self, stages: list[Prune], path: str) -> None:
        """Raise ValueError unless drafts, which are cropped off the cache, change nothing."""
        with self.patch(self.model, stages, path):
            found = [
                generate(self.model, self.inputs, 2 * _NEW, **how).sequences
                for how in ({}, {"prompt_lookup_num_tokens": 2})
            ]
        if not torch.equal(*found):
            raise ValueError("prompt lookup gives other tokens than greedy decoding")

    def _can_score(self) -> bool:
        try:
            self.family.check_scores(self.model, [1])
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
        truth = MaskedSequence(self.model, self.parts, self._followed(ids), self.picture.shape[1])
        gone: dict[int, Tensor] = {}
        for stage in stages:
            gone[stage.layer] = self._dropped(stage, report.kept.get(stage.layer), gone, truth)
        wrong = (logits - truth.logits(gone)).abs().max().item()
        if not wrong <= TOLERANCE:
            raise ValueError(f"logits differ from those of the masked sequence by {wrong:.2g}")

    def _followed(self, ids: Tensor) -> dict[str, Tensor]:
        """The inputs with the tokens that follow the prompt; ids: [B, n + new]."""
        new = ids.shape[1] - self.picture.shape[1]
        mask = self.inputs.get("attention_mask", torch.ones_like(self.picture))
        whole = {**self.inputs, "input_ids": ids, "attention_mask": pad(mask, (0, new), value=1)}
        if "mm_token_type_ids" in whole:
            whole["mm_token_type_ids"] = pad(self.inputs["mm_token_type_ids"], (0, new))
        return whole

    def _dropped(
        self, stage: Prune, kept: tuple[Tensor, ...] | None, gone: Gone, truth: MaskedSequence
    ) -> Tensor:
        """bool [B, n]: tokens that this stage drops; `kept`: the columns it keeps of each sample.

        Raises ValueError if it keeps a wrong number of tokens, or not those with the best scores.
        """
        before = (self.picture > 0) & ~sum(gone.values(), torch.zeros_like(self.picture)).bool()
        after = torch.zeros_like(before)
        for row, columns in zip(after, kept or (), strict=kept is not None):
            row[columns] = True
        scores = truth.scores(stage.layer - 1, gone) if stage.method == "topk" else None
        for number in range(1, int(self.picture.max()) + 1):
            mine = self.picture == number
            stay, go = mine & after, mine & before & ~after
            expected = stage.count(int(mine.sum()), int((mine & before).sum()))
            if (after & ~before).any() or int(stay.sum()) != expected:
                raise ValueError(
                    f"the stage at layer {stage.layer} left {int(stay.sum())} of picture "
                    f"{number}'s tokens, not {expected}"
                )
            if scores is not None and scores[stay].min() < scores[go].max() - TOLERANCE:
                raise ValueError(
                    f"layer {stage.layer - 1} attends more to tokens that were dropped"
                )
        return before & ~after


def runs(batch: Trial, alone: Trial, path: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is tried in one layout, by name."""
    # No scores without a cache: they would be those of the newest token.
    yield "with a KV cache and scores", lambda: batch.generate(_BY_SCORES, path, use_cache=True)
    yield "with a KV cache", lambda: batch.generate(_LATE, path, use_cache=True)
    yield "without a KV cache", lambda: batch.generate(_LATE, path, use_cache=False)
    yield "plain calls without padding", lambda: alone.call(_LATE, path)
    yield "beams", lambda: alone.compare_beams(_LATE, path)
    if not getattr(alone.model, "_is_stateful", False):  # generate refuses drafts
        yield "drafts", lambda: alone.compare_drafts(_LATE, path)
