"""What cannot be tested with a family, because of transformers or of the family itself.

Names of tests, as far as they say which are meant; a reason for each group.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
from model_runs import OLD

from vtfast.errors import InputError, PlanError

HERE = Path(__file__).parent
BEAMS = "transformers hands the pictures of beams on in another order than that of the text"
UNPATCHED = "the unpatched model cannot do it"
RECURRENT = "there is no cache of its recurrent layers to do it with, unpatched too"
PADDING = "recurrent layers take padding behind the first token for tokens, unpatched too"
FEATURES = "features that the caller has merged come without those of DeepStack"
APART = "features that the caller has merged do not tell its pictures apart"
ROUTES = "rounding and small steps decide which experts a token goes to"
TILES = "hashes and grids of pictures in tiles are tested in tests/models/test_tiles.py"
ROUNDING = "rounding to bfloat16 decides which of many like tokens score highest"
SAMPLED = "it samples a placeholder, which the unpatched model takes for a picture"
NO_CACHE = "its model returns no cache in this release, unpatched too"
LAYERS = "the plan scores with a recurrent layer, which is refused"
LAYOUT = "it runs in the padded layout only"
TOWER = "its vision tower has no scores of its visual tokens"
ORACLE = "the test or its oracle reads keys, values or masks of every layer"
_TILED = ("internvl", "smolvlm", "idefics3", "llava-next", "llava-onevision", "aria")
_GLM = {
    BEAMS: (
        "test_seeded_sampling_is_reproducible",
        "test_beams_keep_the_same_tokens",
        "test_beam_search_with_a_cache",
        "test_decoding_is_that_of_a_model_with_hidden_tokens",
    ),
    UNPATCHED: ("offloaded", "partly_on_disk", "test_a_default_dtype_changes_nothing"),
}
_RECURRENT = {
    RECURRENT: (
        "prompt_lookup",
        "that_carries_drafts",
        "test_text_scores_with_drafts",
        "test_assisted_decoding",
        "test_a_cropped_cache",
        "test_cropping",
        "test_what_is_cropped",
        "rearranged",
        "samples_leave_it",
        "test_a_random_talk",
        "made_by_the_caller[qwen3.5-padded-empty]",
        "made_by_the_caller[qwen3.5-moe-padded-empty]",
        "inference_mode_goes_on",
    ),
    PADDING: (
        "a_padded_turn",
        "right_padded_turns",
        "in_different_turns",
        "skip_a_turn",
        "hidden_token_in_a_decoding_step",
    ),
    LAYOUT: ("test_choose_layout",),
    ORACLE: (
        "test_attention_maps_are_the_oracles",
        "test_attention_maps_of_a_decoding_step",
        "positions_of_the_whole_sequence",
        "test-2d-masks",
        "test-4d-masks",
        "training_step_has_the_gradients",
        "test_gradients_are_those",
        "partly_on_disk",
        "random_numbers_of_a_layer_alone",
        "the_slope_of_its_loss",
    ),
}
_IN_TILES = {
    TILES: (
        "test_methods_see_the_hash_of_every_picture",
        *("random-before-the-llm]", "seven-random-at-4]", "uniform-dart-uniform]"),
        *(f"means[{name}-{path}-four-stages" for name in _TILED for path in ("padded", "packed")),
    ),
}
_JOINED = {**_IN_TILES, APART: ("test_a_later_turn_of_merged_features",)}
_DEEPSTACK = {FEATURES: ("test_a_later_turn_of_merged_features",)}
_EXPERTS = {
    ROUTES: ("test_autocast_works", "the_slope_of_its_loss"),
    UNPATCHED: ("a_model_that_has_moved",),
}
_SMOL = {**_IN_TILES, UNPATCHED: ("test_a_default_dtype_changes_nothing",)}
_NEXT = {**_JOINED, UNPATCHED: ("offloaded",), ROUNDING: ("test_autocast_works",)}
_OFFLOADED = ("offloaded", "partly_on_disk")
_ARIA = {
    TOWER: ("by-text-and-tower", "test_handle_set"),
    ROUTES: _EXPERTS[ROUTES],
    **_IN_TILES,
    UNPATCHED: (
        *("offloaded", "a_model_that_has_moved"),
        *("test_a_default_dtype_changes_nothing", "test_half_and_full_precision_draw"),
    ),
}
IMPOSSIBLE = {
    "aria": _ARIA,
    "glm4v": _GLM,
    "glm46v": _GLM,
    "internvl": _IN_TILES,
    "smolvlm": _SMOL,
    "idefics3": {**_IN_TILES, UNPATCHED: (*_SMOL[UNPATCHED], *_OFFLOADED)},
    "llava-next": _NEXT,
    "llava-onevision": {**_NEXT, UNPATCHED: _OFFLOADED},
    "mistral3": {**_JOINED, SAMPLED: ("test_decoding_is_that_of_a_model_with_hidden_tokens",)},
    "qwen3": _DEEPSTACK,
    "qwen3-moe": {**_DEEPSTACK, **_EXPERTS},
    "qwen3.5": _RECURRENT,
    "qwen3.5-moe": {**_RECURRENT, **_EXPERTS},
}


if OLD:  # 5.17 repeats tiles one by one, and encodes pictures within the forward
    for name in (*_TILED, "mistral3"):
        IMPOSSIBLE[name] = {**IMPOSSIBLE[name], BEAMS: _GLM[BEAMS]}
    IMPOSSIBLE["aria"][NO_CACHE] = ("a_later_text_chunk",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in (item for item in items if item.path.parent == HERE):
        given = getattr(getattr(item, "callspec", None), "params", {})
        family = given.get("family", given.get("name"))
        for reason, names in IMPOSSIBLE.get(str(getattr(family, "name", family)), {}).items():
            if any(name in item.nodeid for name in names):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Plans and layouts that a model with recurrent layers refuses have tests of their own."""
    try:
        return (yield)
    except (InputError, PlanError) as error:
        if "recurrent" in str(error):
            pytest.skip(LAYOUT if isinstance(error, InputError) else LAYERS)
        raise
