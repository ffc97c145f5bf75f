"""docs/several-questions.md: a picture is prefilled once, and every question goes on from its KV
cache.

The answers, and the logits that they come from, are those of each question asked alone.
"""

from copy import deepcopy
from functools import cache as cached

import pytest
import torch
from cache_name import CACHE
from command import bundled
from pages import blocks, read
from transformers import DynamicCache

import vtfast
from vtfast.toy.scene import Scene
from vtfast.toy.tasks import TASKS

paths = pytest.mark.parametrize("path", ["padded", "packed"])
models = pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
PLAN, OPTIONS = "divprune+random", {"max_new_tokens": 4, "do_sample": False}
NO_QUESTION = ["diversity", "uniform", "random", "scope", "visionzip", "vispruner"]


class Asked:
    """A model, a drawn picture, and prompts that put some questions to it."""

    def __init__(self, name, seed=4, size=(96, 96), tasks=TASKS):
        self.model, processor = bundled(name)
        scene = Scene.from_seed(seed, size)
        texts = [vtfast.toy.prompt(processor, scene.question(task)[0]) for task in tasks]
        self.prompts = [
            processor(images=[scene.picture()], text=[text], return_tensors="pt") for text in texts
        ]
        self.ids = [prompt["input_ids"] for prompt in self.prompts]
        self.pad = processor.tokenizer.pad_token_id
        self.shared = page()["agree"](self.ids)

    def prefill(self):
        shape = self.ids[0].shape
        start = {
            name: x[:, : self.shared] if x.shape == shape else x
            for name, x in self.prompts[0].items()
        }
        cache = DynamicCache(config=self.model.config.get_text_config())
        with torch.no_grad():
            self.model(**start, **{CACHE: cache}, use_cache=True)
        return cache

    def answer(self, ids, cache, mask=None):
        """Tokens and logits of the answers to prompts whose beginning is in the cache."""
        mask = torch.ones_like(ids) if mask is None else mask
        return self._said(input_ids=ids, attention_mask=mask, **{CACHE: cache})

    def alone(self):
        return [self._said(**prompt) for prompt in self.prompts]

    def batch(self):
        """All prompts, padded between the shared prefix and their questions, and the mask."""
        longest = max(one.shape[1] for one in self.ids)
        rows = [one[0, self.shared :].tolist() for one in self.ids]
        start = self.ids[0][0, : self.shared].tolist()
        gaps = [longest - one.shape[1] for one in self.ids]
        ids = [start + [self.pad] * n + row for n, row in zip(gaps, rows, strict=True)]
        mask = [[1] * self.shared + [0] * n + [1] * (longest - self.shared - n) for n in gaps]
        return torch.tensor(ids), torch.tensor(mask)

    def _said(self, **given):
        out = self.model.generate(
            **given, **OPTIONS, return_dict_in_generate=True, output_logits=True
        )
        return out.sequences[:, given["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@cached
def page():
    """The functions of the page, without what stands around them."""
    names = {"torch": torch}
    code = "\n".join(b.text for b in blocks(read("docs/several-questions.md")))
    exec(code[code.index("def agree") : code.index("def prefill")], names)
    return names


def same(got, expected):
    """Whether answers are equal, up to the longest that both have, and their logits close."""
    for (tokens, logits), (wanted, those) in zip(got, expected, strict=True):
        length = min(tokens.shape[1], wanted.shape[1])
        assert torch.equal(tokens[:, :length], wanted[:, :length])
        torch.testing.assert_close(logits[:, :length], those[:, :length], rtol=0, atol=2e-3)


@paths
@models
def test_a_copy_for_each_question(name, path):
    asked = Asked(name)
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path) as handle:
        cache = asked.prefill()
        assert handle.report.path == path
        assert handle.report.average < 64
        got = [asked.answer(ids, deepcopy(cache)) for ids in asked.ids]
        same(got, asked.alone())


@paths
@models
def test_the_same_cache_cut_back(name, path):
    asked = Asked(name)
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path):
        cache, got = asked.prefill(), []
        for ids in asked.ids:
            got.append(asked.answer(ids, cache))
            cache.crop(asked.shared - cache.get_seq_length())
            assert cache.get_seq_length() == asked.shared
        same(got, asked.alone())


@paths
@models
def test_all_questions_as_one_batch(name, path):
    asked = Asked(name)
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path):
        cache = asked.prefill()
        cache.batch_repeat_interleave(len(asked.ids))
        ids, mask = asked.batch()
        assert not mask.all()
        tokens, logits = asked.answer(ids, cache, mask)
        first = [
            (row[None, :1], those[None, :1]) for row, those in zip(tokens, logits, strict=True)
        ]
        same(first, asked.alone())


@models
def test_the_vision_tower_runs_once_and_the_picture_is_prefilled_once(name):
    asked = Asked(name)
    inner = asked.model.model
    tower = inner.vision_tower if name == "llava" else inner.visual
    calls, widths = [], []
    tower.register_forward_hook(lambda *_: calls.append(1))
    inner.language_model.register_forward_pre_hook(
        lambda _, given, more: widths.append(more["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with vtfast.patch(asked.model, PLAN, keep=0.75):
        cache = asked.prefill()
        before = len(widths)
        for ids in asked.ids:
            asked.answer(ids, deepcopy(cache))
    assert len(calls) == 1
    assert max(widths[before:]) == max(ids.shape[1] for ids in asked.ids) - asked.shared


@pytest.mark.parametrize("method", NO_QUESTION)
def test_methods_that_read_no_question_choose_as_for_each_alone(method):
    asked = Asked("llava", tasks=("digit", "code"))
    with vtfast.patch(asked.model, [vtfast.Prune(0, method, 0.4)]):
        cache = asked.prefill()
        same([asked.answer(ids, deepcopy(cache)) for ids in asked.ids], asked.alone())


@pytest.mark.parametrize("method", ["cdpruner", "topk", "dart"])
def test_methods_that_read_text_choose_once_before_the_questions(method):
    """So what stays differs from what stays for some question alone."""
    asked = Asked("llava")
    with vtfast.patch(asked.model, [vtfast.Prune(2, method, 0.4)], record=True) as handle:
        asked.prefill()
        kept = handle.report.kept[2][0]
        alone = []
        for prompt in asked.prompts:
            asked.model(**prompt)
            alone.append(handle.report.kept[2][0])
    assert any(not torch.equal(kept, those) for those in alone)


@paths
def test_questions_one_after_another_under_renumbered_positions(path):
    asked = Asked("qwen", tasks=("digit", "code"))
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path, positions="renumber"):
        cache = asked.prefill()
        same([asked.answer(ids, deepcopy(cache)) for ids in asked.ids], asked.alone())


def test_padded_questions_under_renumbered_positions_are_refused():
    """The message named a static cache, where there was none."""
    asked = Asked("llava")
    with vtfast.patch(asked.model, PLAN, keep=0.75, positions="renumber"):
        cache = asked.prefill()
        cache.batch_repeat_interleave(len(asked.ids))
        ids, mask = asked.batch()
        with pytest.raises(vtfast.InputError, match=r"padded.*renumber.*equally long"):
            asked.answer(ids, cache, mask)


@paths
def test_a_cache_goes_on_when_its_patch_is_set_to_another_plan(path):
    asked = Asked("llava", tasks=("digit", "code"))
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path) as handle:
        cache = asked.prefill()
        expected = asked.alone()
        handle.set("divprune", keep=0.25)
        same([asked.answer(ids, deepcopy(cache)) for ids in asked.ids], expected)


@paths
def test_a_cache_goes_on_under_the_same_plan_and_is_refused_under_another(path):
    asked = Asked("llava", tasks=("digit", "code"))
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path):
        cache = asked.prefill()
        expected = asked.alone()
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path):
        same([asked.answer(ids, deepcopy(cache)) for ids in asked.ids], expected)
    with (
        vtfast.patch(asked.model, PLAN, keep=0.5, path=path),
        pytest.raises(vtfast.StateError, match="pruned by the plan"),
    ):
        asked.answer(asked.ids[0], deepcopy(cache))


@paths
def test_cutting_into_the_picture_is_refused(path):
    asked = Asked("llava")
    with vtfast.patch(asked.model, PLAN, keep=0.75, path=path):
        cache = asked.prefill()
        with pytest.raises(vtfast.StateError, match="picture"):
            cache.crop(-3)


@pytest.mark.parametrize("name", ["qwen", "qwen3"])
def test_positions_of_a_picture_come_back_with_its_rope_deltas(name):
    """Stock models need it too: without it the positions are those of the picture seen last."""
    first, second = Asked(name), Asked(name, 5, (144, 96))
    second.model = first.model
    with vtfast.patch(first.model, PLAN, keep=0.75):
        caches, deltas = [], []
        for asked in (first, second):
            caches.append(asked.prefill())
            deltas.append(asked.model.model.rope_deltas)
        assert not torch.equal(*deltas)
        got = []
        for asked, cache, delta in zip((first, second), caches, deltas, strict=True):
            asked.model.model.rope_deltas = delta
            got += [asked.answer(ids, deepcopy(cache)) for ids in asked.ids]
        same(got, first.alone() + second.alone())
