"""Settings that vLLM takes at its start, and those that stop it with one line."""

import json
import logging

import pytest
from vllm_engines import checkpoint, configure, edit

from vtfast import Plan, Prune, StateError
from vtfast.plan import Measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint("qwen", tmp_path_factory.getbasetemp())


def setting_of(configured):
    return getattr(configured.model_config.hf_config, "vtfast", None)


def test_a_setting_arrives_in_the_configuration_of_the_model(folder):
    assert setting_of(configure(folder, None)) is None
    found = setting_of(configure(folder, {"method": "random", "keep": 40, "seed": 3}))
    assert found == {"method": "random", "keep": 40, "seed": 3, "positions": "keep"}


def test_the_environment_is_read_where_nothing_else_is_set(folder, monkeypatch):
    monkeypatch.setenv("VTFAST_VLLM", '{"keep": 0.25}')
    assert setting_of(configure(folder, None))["keep"] == 0.25
    assert setting_of(configure(folder, {"keep": 0.75}))["keep"] == 0.75


def test_the_one_stage_of_a_plan_file_is_taken(folder, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    about = Measured("qwen2_5_vl", 8, "code", 600, 0.0, -0.01, 0.01, 0.95)
    Plan([Prune(0, "diversity", 0.375, centre=True)], seed=5, measured=about).save(path)
    found = setting_of(configure(folder, {"plan": str(path)}))
    assert found == {
        **{"method": "diversity", "keep": 0.375, "centre": True},
        **{"seed": 5, "positions": "keep"},
    }
    assert setting_of(configure(folder, {"plan": str(path), "seed": 6}))["seed"] == 6
    monkeypatch.setenv("VTFAST_VLLM", str(path))
    assert setting_of(configure(folder, None)) == found


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"keep": 0}, {}, "keep=0"),
        ({"method": "topk"}, {}, "'topk' reads scores"),
        ({"method": "cdpruner"}, {}, "'cdpruner' reads text"),
        ({"method": "visionzip"}, {}, "'visionzip' reads vision_scores"),
        ({"method": "divers"}, {}, "'divers' is unknown; pass diversity, random or uniform"),
        ({"kept": 0.5}, {}, "setting 'kept' is unknown; known are plan, method, keep"),
        ({"positions": "renumber"}, {}, "is for LLaVA"),
        ({"positions": "none"}, {}, "positions='none'"),
        ({"seed": "x"}, {}, "seed='x'"),
        ({"plan": "missing.json"}, {}, "missing.json"),
        ({"plan": "missing.json", "keep": 0.5}, {}, "keep with a plan"),
        (0.5, {}, "pass a JSON object"),
        ({"keep": 0.5}, {"video_pruning_rate": 0.5}, "--video-pruning-rate prunes too"),
        ({"keep": 0.5}, {"pipeline_parallel_size": 2}, "pipeline parallel"),
        ({"keep": 0.5}, {"mm_processor_kwargs": {"vtfast_keep": 0.5}}, "is of a request"),
        (
            {"keep": 0.5},
            {"enable_lora": True, "enable_tower_connector_lora": True},
            "adapters of the vision tower",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start(folder, settings, more, message):
    with pytest.raises(StateError, match="vtfast: ") as caught:
        configure(folder, settings, **more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_log_says_what_is_pruned_and_by_what(folder):
    """A server whose setting was misspelt served unpruned, and nothing told."""
    import vllm.logger  # noqa: F401 (it configures logging when it is imported)

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("vllm.vtfast")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        configure(folder, None)
        assert said == []
        configure(folder, {"keep": 0.25})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert [line.partition(": ")[0] for line in said] == [
        "vtfast prunes what Qwen2_5_VLForConditionalGeneration sees"
    ]
    assert json.loads(said[0].partition(": ")[2])["keep"] == 0.25


def test_a_second_stage_is_refused_with_the_reason(folder, tmp_path):
    Plan([Prune(0, "diversity", 0.5), Prune(5, "drop", 0)]).save(tmp_path / "two.json")
    with pytest.raises(StateError, match="one number of tokens per request for all layers"):
        configure(folder, {"plan": str(tmp_path / "two.json")})


def test_a_plan_measured_on_another_model_is_refused(folder, tmp_path):
    about = Measured("llava", 8, "code", 600, 0.0, -0.01, 0.01, 0.95)
    Plan([Prune(0, "diversity", 0.5)], measured=about).save(tmp_path / "other.json")
    with pytest.raises(StateError, match="model_type='llava'"):
        configure(folder, {"plan": str(tmp_path / "other.json")})


def test_a_model_that_is_not_pruned_refuses_a_setting_and_is_left_alone_without(tmp_path):
    folder = checkpoint("llava", tmp_path)
    text = json.loads((tmp_path / "llava/config.json").read_text())["text_config"]
    (tmp_path / "llava/config.json").write_text("{}")
    edit(tmp_path / "llava/config.json", **text | {"architectures": ["LlamaForCausalLM"]})
    configure(folder, None)
    with pytest.raises(StateError, match="LlamaForCausalLM is not pruned in vLLM"):
        configure(folder, {"keep": 0.5})


def test_a_llava_whose_text_model_cannot_leave_gaps_can_renumber(tmp_path):
    folder = checkpoint("llava", tmp_path)
    text = json.loads((tmp_path / "llava/config.json").read_text())["text_config"]
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    edit(tmp_path / "llava/config.json", text_config={**text, "rope_parameters": rope})
    with pytest.raises(StateError, match='pass "positions": "renumber"'):
        configure(folder, {"keep": 0.5})
    assert setting_of(configure(folder, {"keep": 0.5, "positions": "renumber"}))
