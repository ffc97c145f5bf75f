"""One stage: what it accepts, what it refuses, and how many tokens it keeps."""

import copy
import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from vtfast.errors import PlanError, VTFastError
from vtfast.prune import Prune

SETTINGS = examples(300)
TOKENS = st.integers(0, 20_000)


@SETTINGS
@given(sixty_fourths=st.integers(0, 64), original=TOKENS)
def test_a_fraction_of_the_original_is_rounded_half_up(sixty_fourths, original):
    exact = math.floor(Fraction(sixty_fourths, 64) * original + Fraction(1, 2))
    if sixty_fourths and original:
        exact = max(exact, 1)
    assert Prune(0, "random", sixty_fourths / 64).count(original, original) == exact


@SETTINGS
@given(keep=st.floats(0, 1), original=TOKENS, data=st.data())
def test_a_fraction_refers_to_the_original_and_stops_at_what_is_left(keep, original, data):
    left = data.draw(st.integers(0, original))
    stage = Prune(3, "random", keep)
    assert stage.count(original, left) == min(stage.count(original, original), left)


@SETTINGS
@given(keep=TOKENS, original=TOKENS, data=st.data())
def test_an_int_is_a_number_of_tokens_and_stops_at_what_is_left(keep, original, data):
    left = data.draw(st.integers(0, original))
    assert Prune(3, "random", keep).count(original, left) == min(keep, left)


@SETTINGS
@given(original=TOKENS, keeps=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_smaller_fraction_never_keeps_more(original, keeps):
    low, high = (Prune(0, "random", keep).count(original, original) for keep in sorted(keeps))
    assert low <= high


@pytest.mark.parametrize("keep", [1e-300, 1e-6, 0.0004])
def test_a_fraction_keeps_at_least_one_token(keep):
    assert Prune(0, "random", keep).count(576, 576) == 1


@pytest.mark.parametrize("keep", [0, 0.0])
def test_zero_keeps_nothing(keep):
    assert Prune(0, "random", keep).count(576, 576) == 0


def test_an_image_without_tokens_keeps_none():
    assert [Prune(0, "random", keep).count(0, 0) for keep in (0.5, 1.0, 7)] == [0, 0, 0]


def test_an_image_with_nothing_left_keeps_none():
    assert Prune(0, "random", 0.5).count(576, 0) == 0


def test_one_is_a_token_and_one_point_zero_is_all():
    assert Prune(0, "random", 1).count(576, 576) == 1
    assert Prune(0, "random", 1.0).count(576, 576) == 576


@pytest.mark.parametrize("bad", [(-1, 0), (5, -1), (5.0, 5), (True, 1)])
def test_counts_of_anything_but_whole_numbers_are_refused(bad):
    with pytest.raises(PlanError, match="expected a whole number >= 0; pass an int"):
        Prune(0, "random", 0.5).count(*bad)


@pytest.mark.parametrize("layer", [True, False, -1, 2.0, "2", None, np.bool_(True)])
def test_a_layer_that_is_no_whole_number_is_refused(layer):
    with pytest.raises(PlanError, match=r"^layer=.*expected a whole number >= 0; pass an int$"):
        Prune(layer, "random", 0.5)


@pytest.mark.parametrize("keep", [1.0000001, 20.0, -0.1, math.nan, math.inf, np.float32(1.5)])
def test_a_float_outside_zero_to_one_is_refused(keep):
    with pytest.raises(PlanError, match=r"a float is a fraction in \[0, 1\].*an int for a number"):
        Prune(0, "random", keep)


@pytest.mark.parametrize("keep", [True, False, np.bool_(True), "0.5", None, [0.5], 1j])
def test_a_keep_that_is_no_number_is_refused(keep):
    with pytest.raises(PlanError, match=r"expected a fraction in \[0, 1\] or a number of tokens"):
        Prune(0, "random", keep)


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(PlanError, match="keep=-1: expected a whole number >= 0"):
        Prune(0, "random", -1)


@pytest.mark.parametrize("method", ["", None, 3, ("random",)])
def test_a_method_is_a_name(method):
    with pytest.raises(PlanError, match=r"method=.*pass a string"):
        Prune(0, method, 0.5)


def test_half_a_token_is_rounded_up():
    """Python's `round`, which some papers' code uses, would keep 288 of 577."""
    assert [Prune(0, "random", 0.5).count(n, n) for n in (577, 579, 5)] == [289, 290, 3]


def test_numpy_numbers_become_python_numbers():
    stage = Prune(np.int64(2), "topk", np.int32(5))
    assert (type(stage.layer), type(stage.keep)) == (int, int)
    assert type(Prune(0, "topk", np.float32(0.25)).keep) is float


@pytest.mark.parametrize("keep", [1, 0.5, 1.0])
def test_drop_keeps_nothing_and_refuses_anything_else(keep):
    with pytest.raises(PlanError, match='method "drop", which keeps nothing; pass keep=0'):
        Prune(20, "drop", keep)


def test_drop_takes_either_zero():
    assert Prune(20, "drop", 0) == Prune(20, "drop", 0.0)


@pytest.mark.parametrize("error", [ValueError, VTFastError])
def test_a_refusal_is_a_value_error_of_ours(error):
    with pytest.raises(error):
        Prune(-1, "random", 0.5)


@pytest.mark.parametrize("method", ["random", "topk", "diversity", "somebodys_own"])
def test_every_method_has_a_budget_per_image_unless_told_per_frame(method):
    assert Prune(0, method, 0.5).options["per"] == "image"
    assert Prune(0, method, 0.5, per="frame").options["per"] == "frame"


def test_topk_scores_with_the_previous_layer_unless_told_this():
    assert Prune(8, "topk", 0.5).options["score_layer"] == "previous"
    assert Prune(8, "topk", 0.5, score_layer="this").options["score_layer"] == "this"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("random", {"per": "video"}, "per='video' with method 'random': pass 'image' or 'frame'"),
        ("random", {"per": None}, "per=None .*pass 'image' or 'frame'"),
        ("somebodys_own", {"per": 3}, "per=3 .*pass 'image' or 'frame'"),
        ("topk", {"score_layer": "next"}, "score_layer='next'.*pass 'previous' or 'this'"),
        ("random", {"score_layer": "this"}, "has no option 'score_layer'; its options are per$"),
        ("topk", {"sharp": 1}, "has no option 'sharp'; its options are per, score_layer"),
        ("drop", {"seed": 1}, "has no option 'seed'"),
    ],
)
def test_an_option_a_method_does_not_know_is_refused(method, options, message):
    with pytest.raises(PlanError, match=message):
        Prune(0, method, 0 if method == "drop" else 0.5, **options)


def test_a_registered_method_gets_any_option():
    stage = Prune(0, "somebodys_own", 0.5, window=(2, 2), sharp=True)
    assert dict(stage.options) == {
        "per": "image",
        "score_layer": "previous",
        "sharp": True,
        "window": (2, 2),
    }


def test_an_option_that_cannot_be_hashed_is_refused():
    with pytest.raises(PlanError, match=r"window=\[2, 2\].*pass a tuple instead of a list"):
        Prune(0, "somebodys_own", 0.5, window=[2, 2])


def test_options_are_read_only():
    with pytest.raises(TypeError):
        Prune(0, "random", 0.5).options["per"] = "frame"


def test_a_stage_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Prune(0, "random", 0.5).keep = 0.6


@pytest.mark.parametrize(
    "other",
    [
        Prune(1, "random", 0.5),
        Prune(0, "topk", 0.5),
        Prune(0, "random", 0.25),
        Prune(0, "random", 0.5, per="frame"),
    ],
    ids=["layer", "method", "keep", "option"],
)
def test_stages_that_differ_are_not_equal(other):
    assert Prune(0, "random", 0.5) != other


def test_one_token_and_all_tokens_are_not_equal():
    assert len({Prune(0, "random", 1), Prune(0, "random", 1.0)}) == 2


def test_a_default_given_is_a_default_left_out():
    given, left_out = Prune(2, "topk", 0.5, score_layer="previous"), Prune(2, "topk", 0.5)
    assert given == left_out
    assert hash(given) == hash(left_out)


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (Prune(20, "random", 0.06), 'Prune(20, "random", 0.06)'),
        (Prune(0, "diversity", 284, per="frame"), "Prune(0, \"diversity\", 284, per='frame')"),
        (Prune(20, "drop", 0.0), 'Prune(20, "drop", 0)'),
        (Prune(0, "own", 1, a=(1,)), 'Prune(0, "own", 1, a=(1,))'),
    ],
)
def test_a_stage_prints_as_the_call_that_makes_it(stage, text):
    assert repr(stage) == text
    assert eval(text) == stage


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_stage_survives_copying(duplicate):
    stage = Prune(8, "topk", 0.5, score_layer="this")
    assert duplicate(stage) == stage
    assert duplicate(stage).options == stage.options


def test_replace_does_not_lose_options_silently():
    with pytest.raises(PlanError, match="has no option '_options'"):
        dataclasses.replace(Prune(0, "somebodys_own", 0.5, sharp=True), keep=0.25)
