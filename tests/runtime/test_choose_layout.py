"""`path="auto"`: packed where enough of a padded batch would be padding, by host numbers alone."""

import pytest
import torch
from model_runs import FOUR_STAGES, both_layouts, continuation, logits_of
from packed_samples import alone, in_one_row
from tiny_models import FAMILIES
from tiny_parts import Picture
from turns import Turns

import vtfast
from vtfast import Prune
from vtfast.methods import kernel_limits, padding

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def ids(family, *texts):
    """Prompts with one picture, and this many tokens of text behind it."""
    picture = family.named("single")[0].pictures[0]
    return family.batch(family.samples(*([picture, n] for n in texts)))


def taken(family, inputs, plan=FOUR_STAGES, model=None, **how):
    """The layout that "auto" takes, and why."""
    model = model or family.build()
    with vtfast.patch(model, plan, **how) as handle, torch.no_grad():
        model(**inputs)
    return handle.report.path, handle.report.path_reason


@families
def test_samples_that_are_alike_are_padded(family):
    assert taken(family, ids(family, 5)) == ("padded", "samples are all alike")
    assert taken(family, ids(family, 5, 5, 5)) == ("padded", "samples are all alike")


@families
def test_samples_that_differ_are_packed_and_the_share_of_padding_is_said(family):
    path, reason = taken(family, ids(family, 5, 40))
    assert path == "packed"
    assert reason.endswith("% of a padded batch would be padding")


@families
def test_samples_that_hardly_differ_are_padded(family):
    """Of 40 and 39 tokens of text one place in 80 and more is padding: not what packing costs."""
    path, reason = taken(family, ids(family, 40, 39))
    assert path == "padded"
    assert reason.endswith("1% of a padded batch would be padding")


@pytest.mark.parametrize(("least", "path"), [(0.19, "packed"), (0.21, "padded")])
def test_the_share_is_that_of_all_layers(monkeypatch, least, path):
    """Counted by hand: of 36 visual tokens 4 stay in the second half; text of 11 and 3 tokens."""
    family = FAMILIES["llava"]
    inputs = ids(family, 10, 2)  # and one before the picture
    share = 1 - (47 + 39 + 15 + 7) / (2 * (47 + 15))
    monkeypatch.setattr(padding, "_LEAST_PADDING", share + (least - 0.2))
    plan = [Prune(3, "random", 4)]
    assert taken(family, inputs, plan) == (path, f"{share:.0%} of a padded batch would be padding")


@families
def test_padding_that_all_rows_have_counts_before_the_first_stage_that_drops(family):
    """A collator may pad to a fixed length; from that stage on the padded layout has none of it."""
    inputs = ids(family, 5)
    for name in {"input_ids", "attention_mask", "mm_token_type_ids"} & set(inputs):
        inputs[name] = torch.nn.functional.pad(inputs[name], (200, 0))
    assert taken(family, inputs, [Prune(3, "random", 0.5)])[0] == "packed"
    assert taken(family, inputs, [Prune(0, "random", 0.5)])[0] == "padded"


@families
def test_a_plan_that_drops_nothing_is_not_called_packed(family):
    found = taken(family, ids(family, 5, 40), [Prune(2, "random", 1.0)])
    assert found == ("padded", "no stage drops a token")


@families
def test_a_model_that_has_moved_is_decided_for_anew(family, monkeypatch):
    """Here it changes its dtype: kernels that took the one may not take the other."""
    asked = []
    monkeypatch.setattr(
        kernel_limits,
        "why_unsupported",
        lambda stages, impl, path, like, size: asked.append(like.dtype),
    )
    model, inputs = family.build(), ids(family, 5, 40)
    with vtfast.patch(model, FOUR_STAGES), torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.float64):
            typed = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
            model.to(dtype)(**typed)
    assert asked == [torch.float32, torch.float64]


@families
def test_rows_that_hold_several_samples_are_packed(family):
    model = family.build()
    parts = [alone(family, model, family.named("batch")[i]) for i in (1, 1)]
    inputs = {**in_one_row(parts), "use_cache": False}
    assert taken(family, inputs, model=model) == ("packed", "rows hold several samples")


@families
def test_what_packing_cannot_do_is_padded_however_unlike_samples_are(family):
    inputs = ids(family, 5, 40)
    path, reason = taken(family, {**inputs, "output_attentions": True})
    assert (path, reason) == ("padded", "attention maps were asked for")
    assert taken(family, inputs, path="padded") == ("padded", "asked for")


@both_layouts
def test_auto_says_what_both_layouts_say(family, path):
    """Whatever it takes: the greedy tokens are the same."""
    model = family.build()
    for inputs in (ids(family, 5, 40), ids(family, 5, 5)):
        said = []
        for how in (path, "auto"):
            with vtfast.patch(model, FOUR_STAGES, path=how):
                said.append(
                    (logits_of(family, model, inputs), continuation(model, inputs, steps=4))
                )
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(said[0][0][real], said[1][0][real], rtol=0, atol=3e-4)
        assert torch.equal(said[0][1], said[1][1])


def test_a_cache_that_has_lost_nothing_is_decided_for_when_it_first_does():
    """The first pictures are too small to lose a token."""
    family, small, large = FAMILIES["qwen"], Picture((1, 4, 4)), Picture((1, 12, 12), seed=1)
    model = family.build()
    with vtfast.patch(model, [Prune(0, "uniform", 6)], record=True) as handle:
        turns = Turns(family, model, handle, rows=2)
        turns.say([2, small, 3], [2, small, 3])
        assert handle.report.path_reason == "no stage drops a token"
        turns.say([2, large, 3], [2, large, 40])
        assert handle.report.path == "packed"
        turns.step(3)
        turns.check()
