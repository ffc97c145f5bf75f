"""`Handle.set`: another plan from the next prefill on, while what has begun goes on by its own.

What a model says is, to the bit, what a model freshly patched with the plan says. Sets that come in
the middle of a call, from another thread, are in test_handle_set_midway.py.
"""

import copy
import inspect
import pickle

import pytest
import torch
from cache_name import CACHE, cache_of
from conversation import Conversation
from devices import DEVICE
from model_runs import FOUR_STAGES, OLD, both_layouts, continuation, fed, first_rows, logits_of
from module_state import changes, module_state
from plans_to_set import ALL, PLAIN, PLANS, RANDOM, SCORED, TOWER, said_by
from tiny_models import FAMILIES, build_llava
from tiny_parts import TEXT, Picture, encoded
from transformers import LlamaConfig
from turns import Turns

import vtfast
from vtfast import InputError, PlanError, Prune, StateError, UnsupportedModelError
from vtfast.models import vision_scores
from vtfast.patching import Handle


class Talk(Conversation):
    """A conversation that notes its logits."""

    def _forward(self, **inputs):
        out = super()._forward(**inputs)
        self.logits = [*getattr(self, "logits", []), out.logits]
        return out

    def go_on(self, steps=4):
        for _ in range(steps):
            self.step()
        return torch.cat(self.logits, 1)


def talked(family, inputs, plan, path):
    """Logits of a prefill and four steps under a patch of this plan alone."""
    with vtfast.patch(model := family.build(), plan, path=path):
        return Talk(family, model, inputs).go_on()


@both_layouts
def test_the_next_prefill_is_that_of_a_fresh_patch(family, path):
    """Also of plans that need other layers, the tower or image hashes, and back."""
    inputs, model = family.inputs("batch"), family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path, record=True) as handle:
        for plan in (*PLANS.values(), FOUR_STAGES):
            handle.set(plan)
            logits, report = logits_of(family, model, inputs), handle.report
            said = continuation(model, inputs, steps=3)
            assert report.plan == handle.plan == vtfast.Plan(plan)
            with vtfast.patch(other := family.build(), plan, path=path, record=True) as fresh:
                assert torch.equal(logits, logits_of(family, other, inputs))
                assert report.kept.keys() == fresh.report.kept.keys()
                for layer, rows in fresh.report.kept.items():
                    assert all(map(torch.equal, report.kept[layer], rows))
                assert torch.equal(said, continuation(other, inputs, steps=3))


@both_layouts
def test_caches_already_made_go_on_by_their_plan(family, path):
    """One of each plan, decoded in turns under the last; copied, written down, and cropped too."""
    inputs, model, talks = family.inputs("batch"), family.build(), {}
    expected = {name: talked(family, inputs, plan, path) for name, plan in PLANS.items()}
    with vtfast.patch(model, RANDOM, path=path) as handle:
        for name, plan in PLANS.items():
            handle.set(plan)
            talks[name] = Talk(family, model, inputs)
        for _ in range(2):
            for talk in talks.values():
                talk.step()
                talk.cache = copy.deepcopy(talk.cache)
                talk.step()
                talk.cache = pickle.loads(pickle.dumps(talk.cache))
        for name, talk in talks.items():
            assert torch.equal(torch.cat(talk.logits, 1), expected[name]), name
            talk.cache.crop(-2)
            talk.forget(2)
            assert torch.equal(talk.go_on(2)[:, -2:], expected[name][:, -2:])


def turns_of(family, model, handle=None, between=lambda turns: None):
    """Two later turns with pictures, one of them by `generate`, which encodes before."""
    turns = Turns(family, model, handle)
    turns.say([4, Picture(seed=1), 7])
    between(turns)
    turns.step(2)
    turns.say([3, Picture(seed=2), 5], seed=1)
    between(turns)
    turns.generate([2, Picture(seed=3), 4], seed=2)
    return turns


@pytest.mark.parametrize("plan", ["four", "tower", "all"])
@both_layouts
def test_later_pictures_of_a_cache_are_pruned_by_its_plan(family, path, plan):
    with vtfast.patch(model := family.build(), PLANS[plan], path=path, record=True) as handle:
        expected = turns_of(family, model, handle)
    other = PLAIN if plan == "tower" else TOWER
    with vtfast.patch(model := family.build(), PLAIN, path=path, record=True) as handle:
        handle.set(PLANS[plan])
        got = turns_of(family, model, handle, lambda turns: handle.set(other))
        assert handle.report.plan == vtfast.Plan(PLANS[plan]) != handle.plan
    assert torch.equal(got.logits, expected.logits)
    assert all(torch.equal(got.gone[layer], lost) for layer, lost in expected.gone.items())


REFUSED = {
    "name": (PlanError, "divpurne", {}),
    "horizon": (PlanError, "divprune", {"horizon": 3}),
    "keep": (PlanError, FOUR_STAGES, {"keep": 0.25}),
    "method": (PlanError, [Prune(2, "no-such-method", 0.5)], {}),
    "layer": (PlanError, [Prune(99, "random", 0.5)], {}),
    "tower": (UnsupportedModelError, TOWER, {}),  # its features are then no output of a layer
    "kernels": (InputError, SCORED, {}),  # take no heads of this size
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_patch_refuses_is_refused_alike_and_nothing_has_changed(case, monkeypatch):
    family, (error, plan, how) = FAMILIES["llava"], REFUSED[case]
    inputs = {k: x.to(DEVICE) for k, x in family.inputs("single").items()}
    text = LlamaConfig(**TEXT, head_dim=272) if case == "kernels" else None
    model, impl = build_llava(text_config=text).to(DEVICE), "triton" if text else "eager"
    if case == "tower":
        monkeypatch.setattr(model.config, "vision_feature_layer", 0)
    with pytest.raises(error) as fresh:
        vtfast.patch(model, plan, impl=impl, **how)
    with vtfast.patch(model, PLAIN, impl=impl) as handle:
        old, before = handle.plan, module_state(model)
        with pytest.raises(error) as refused:
            handle.set(plan, **how)
        assert str(refused.value) == str(fresh.value)
        assert changes(before, module_state(model)) == []
        assert handle.plan is old
        monkeypatch.undo()
        logits = logits_of(family, model, inputs)
    with vtfast.patch(model, PLAIN, impl=impl):
        assert torch.equal(logits_of(family, model, inputs), logits)


def test_arguments_and_their_defaults_are_those_of_patch():
    model = FAMILIES["llava"].build()
    ours, patchs = (inspect.signature(f).parameters for f in (Handle.set, vtfast.patch))
    for name in ("keep", "horizon"):
        assert (ours[name].default, ours[name].kind) == (patchs[name].default, patchs[name].kind)
    for args, how in ((("divprune",), {}), (("fastv+random",), {"keep": 0.5, "horizon": 4})):
        with vtfast.patch(model, *args, **how) as handle:
            expected = handle.plan
        with vtfast.patch(model, PLAIN) as handle:
            handle.set(*args, **how)
            assert handle.plan == expected


@both_layouts
@torch.no_grad()
def test_undo_is_exact_after_several_sets(family, path):
    inputs, model = family.inputs("single"), family.build()
    expected, before = continuation(model, inputs, 4), module_state(model)
    with vtfast.patch(model, ALL, path=path) as handle:
        cache, generate = cache_of(model(**inputs)), model.generate
        for plan in PLANS.values():
            handle.set(plan)
            continuation(model, inputs, 2)
    cache.crop(-1)
    generate(inputs["input_ids"], **{CACHE: cache}, max_new_tokens=2)  # somebody has kept it
    with pytest.raises(StateError, match=r"removed; call vtfast\.patch"):
        handle.set(FOUR_STAGES)
    assert changes(before, module_state(model)) == []
    assert torch.equal(continuation(model, inputs, 4), expected)


@both_layouts
def test_a_copy_has_a_plan_of_its_own_and_goes_on_with_caches_of_its_original(family, path):
    """Also where the copy has not run their plan, and has not watched its tower for it."""
    inputs, model = family.inputs("batch"), family.build()
    with vtfast.patch(model, SCORED, path=path) as handle:
        handle.set(FOUR_STAGES)
        copied = copy.deepcopy(model)
        handle.set(TOWER)
        expected = turns_of(family, model).logits
        got = turns_of(family, model, None, lambda turns: setattr(turns, "model", copied))
        assert torch.equal(got.logits, expected)
        handle.remove()
    assert torch.equal(
        Talk(family, copied, inputs).go_on(), talked(family, inputs, FOUR_STAGES, path)
    )
    vtfast.unpatch(copied)
    assert not any(module._forward_pre_hooks for module in copied.modules())


@both_layouts
def test_a_cache_of_another_patch_goes_on_by_an_equal_plan_alone(family, path):
    inputs, model = family.inputs("batch"), family.build()
    with vtfast.patch(model, FOUR_STAGES, path=path):
        other, talk = Talk(family, model, inputs), Talk(family, model, inputs)
    with vtfast.patch(model, PLAIN, path=path) as handle:
        with pytest.raises(StateError, match=r"pruned by the plan.*not patched with any more"):
            other.step()
        handle.set(FOUR_STAGES)
        talk.step()
        handle.set(PLAIN)  # by now it is a cache of this patch
        assert torch.equal(talk.go_on(3), talked(family, inputs, FOUR_STAGES, path))


@pytest.mark.skipif(OLD, reason="before 5.23 a forward takes no features")
@both_layouts
@torch.no_grad()
def test_features_follow_the_plan_that_is_set_where_they_were_made_for_its_needs(family, path):
    inputs, model = family.inputs("single"), family.build()
    text = {k: v for k, v in fed(family, inputs).items() if k != "pixel_values"}
    with vtfast.patch(model, [*RANDOM[:1], *TOWER[1:]], path=path) as handle:
        rich = encoded(model, "image", inputs)
        for plan in PLANS.values():
            handle.set(plan)
            got = model(**text, mm_encoder_outputs={"image": rich}).logits
            assert torch.equal(got, logits_of(family, model, inputs))
        handle.set(PLAIN)
        poor = encoded(model, "image", inputs)
        for plan, missing in ((RANDOM, "hashes of pixels"), (TOWER, "scores of the vision tower")):
            handle.set(plan)
            with pytest.raises(InputError, match=rf"{missing}.*pass them as pixels"):
                model(**text, mm_encoder_outputs={"image": poor})


def test_the_tower_is_looked_at_only_while_the_plan_needs_it(monkeypatch):
    looked, look = [], vision_scores._attended
    monkeypatch.setattr(vision_scores, "_attended", lambda *x: looked.append(1) or look(*x))
    given = FAMILIES["llava"], FAMILIES["llava"].build(), FAMILIES["llava"].inputs("single")
    with vtfast.patch(given[1], TOWER) as handle:
        mask = given[2]["attention_mask"].clone()
        mask[:, 10:15] = 0
        with pytest.raises(InputError, match="hides") as failed:  # its forward is kept alive
            given[1](**{**given[2], "attention_mask": mask})
        for plan, times in ((PLAIN, 0), (TOWER, 2), (PLAIN, 2)):
            handle.set(plan)
            said_by("forward", *given)
            said_by("generate", *given)
            assert len(looked) == times
    assert failed


@torch.no_grad()
def test_a_cache_that_lost_nothing_is_cropped_as_ever():
    inputs, model = FAMILIES["llava"].inputs("single"), FAMILIES["llava"].build()
    with vtfast.patch(model, ALL):
        cache = cache_of(model(**inputs))
        cache.crop(-20)  # into the picture
        assert (
            model(input_ids=inputs["input_ids"][:, -3:], **{CACHE: cache}).logits.isfinite().all()
        )


@torch.no_grad()
def test_a_cache_is_written_down_although_its_method_cannot_be():
    vtfast.register_method("test-local", replace=True)(lambda context: first_rows(context))
    inputs, model = FAMILIES["llava"].inputs("single"), FAMILIES["llava"].build()
    with vtfast.patch(model, [Prune(2, "test-local", 0.5)]):
        cache = cache_of(model(**inputs))
        state = pickle.loads(pickle.dumps(cache)).vtfast
        assert state.config == cache.vtfast.config
        assert state.config.stages == cache.vtfast.config.stages
