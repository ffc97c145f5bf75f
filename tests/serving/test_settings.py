"""The settings of a server, which need no vLLM."""

import pytest

from vtfast import InputError, Plan, PlanError, Prune
from vtfast.vllm.settings import Settings, as_keep, given_to


def test_settings_go_through_their_record():
    given = {"method": "diversity", "keep": 0.25, "centre": True, "seed": 4}
    found = Settings.read(given, 8, "llava")
    assert found.stage == Prune(0, "diversity", 0.25, centre=True)
    assert Settings.read(found.record(), 8, "llava") == found
    assert (found.count(576), found.with_keep(100).count(576)) == (144, 100)
    assert str(found) != str(found.with_keep(0.5))


@pytest.mark.parametrize(("value", "keep"), [(1, 1.0), (1.0, 1.0), (0.5, 0.5), (2, 2), (64.0, 64)])
def test_json_has_one_kind_of_number(value, keep):
    assert as_keep(value) == keep
    assert type(as_keep(value)) is type(keep)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("inf"), float("nan"), True, "1", None])
def test_other_values_are_refused(value):
    with pytest.raises(InputError, match="pass a share of a picture's tokens"):
        as_keep(value)


def test_a_plan_file_of_one_stage_before_the_language_model_is_taken(tmp_path):
    Plan([Prune(0, "uniform", 64)], seed=9).save(tmp_path / "one.json")
    found = Settings.read(str(tmp_path / "one.json"), 8, "llava")
    assert (found.stage, found.seed) == (Prune(0, "uniform", 64), 9)


def test_a_plan_of_two_stages_is_refused(tmp_path):
    Plan([Prune(0, "uniform", 64), Prune(4, "drop", 0)]).save(tmp_path / "two.json")
    with pytest.raises(PlanError, match="one number of tokens per request for all layers"):
        Settings.read(str(tmp_path / "two.json"), 8, "llava")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kep": 0.5}, "setting 'kep' is unknown; known are plan, method, keep, .* per, centre"),
        ({"method": "best"}, "'best' is unknown; pass diversity, random or uniform"),
        ({"method": ["random"]}, "is unknown; pass diversity"),
        ({"method": "topk"}, "'topk' reads scores, .*; pass diversity, random or uniform"),
        ({"centre": 3}, "centre=3"),
    ],
)
def test_a_wrong_setting_says_what_there_is(given, said):
    with pytest.raises(InputError, match=said):
        Settings.read(given, 8, "llava")


def test_the_environment_may_hold_what_the_option_holds():
    bare = Settings.read({"keep": 0.25}, 8, "llava")
    assert Settings.read({"vtfast": {"keep": 0.25}}, 8, "llava") == bare


def test_what_is_set_is_found(monkeypatch):
    monkeypatch.delenv("VTFAST_VLLM", raising=False)
    assert given_to({}) is None
    assert given_to({"vtfast": {"keep": 0.5}}) == {"keep": 0.5}
    monkeypatch.setenv("VTFAST_VLLM", "{keep: 0.5}")
    with pytest.raises(InputError, match="is no JSON"):
        given_to({})
    monkeypatch.setenv("VTFAST_VLLM", "plan.json")
    assert given_to({}) == "plan.json"
