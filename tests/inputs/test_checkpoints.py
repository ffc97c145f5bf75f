"""Checkpoints by name: what is found, in which order it is refused, and with which one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelInfo
from repository import ROOT
from safetensors.torch import load_file, save_file

from vtfast import toy
from vtfast.errors import InputError, PlanError, UnsupportedModelError
from vtfast.inputs.checkpoints import find
from vtfast.inputs.devices import device_named

CPU = torch.device("cpu")
BUNDLED = Path(toy.__file__).parent / "checkpoints" / "llava"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder of the user, here a copy of the bundled LLaVA."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "checkpoint"))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What is found


def test_a_folder_is_found_and_loads_the_same_weights(folder: Path) -> None:
    there, bundled = find(str(folder)).weights(CPU, "auto"), toy.load("llava")[0]
    assert not there.training
    for (name, mine), (_, its) in zip(
        there.named_parameters(), bundled.named_parameters(), strict=True
    ):
        assert torch.equal(mine, its), name


@pytest.mark.parametrize(("asked", "dtype"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_on_a_cpu_the_dtype_is_float32_unless_given(folder: Path, asked: str, dtype: str) -> None:
    assert find(str(folder)).weights(CPU, asked).dtype == getattr(torch, dtype)


# What is refused, by the configuration alone: none of these folders has weights


def test_an_unsupported_model_is_refused_by_its_class_before_its_weights(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    configure(folder, model_type="bert", architectures=["BertModel"])
    with pytest.raises(UnsupportedModelError) as caught:
        find(str(folder))
    line = str(caught.value)
    assert "is BertModel; vtfast prunes LlavaForConditionalGeneration, Qwen2VL" in line


def test_a_llava_of_another_code_base_is_refused(folder: Path) -> None:
    configure(folder, architectures=["LlavaLlamaForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="is LlavaLlamaForCausalLM; vtfast prunes"):
        find(str(folder))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "gemma3"}, "is Gemma3ForConditionalGeneration"),
        ({"model_type": "unheard_of"}, "is a model of type 'unheard_of'"),
        ({}, "is no model of transformers"),
    ],
    ids=["known", "unknown", "none"],
)
def test_a_configuration_without_a_class_is_refused_by_its_type(
    tmp_path: Path, config: dict, says: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=says):
        find(str(tmp_path))


def test_a_tower_vtfast_cannot_prune_is_refused_before_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    configure(folder, vision_config={**vision, "model_type": "pixtral"})
    with pytest.raises(UnsupportedModelError, match="vision tower of type 'pixtral'"):
        find(str(folder)).check_plan()


def test_a_plan_that_does_not_fit_is_refused_before_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(PlanError, match="the model has 12 decoder layers; pass 0 < horizon < 12"):
        find(str(folder)).check_plan(plan="divprune+random", horizon=12)


def test_checking_a_plan_uses_the_checkpoints_own_horizon(folder: Path) -> None:
    configure(folder, vtfast_horizon=99)
    with pytest.raises(PlanError, match="horizon=99"):
        find(str(folder)).check_plan(plan="divprune+random")


# What is refused: names, folders, files


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "--model ./nowhere: there is no such folder"),
        ("/no/where", "--model /no/where: there is no such folder"),
        ("a/b/c", "--model a/b/c: there is no such folder"),
        ("a b/c", "--model a b/c: .* is not a hub id, which looks like owner/name"),
        (__file__, "is a file; pass the folder it is in"),
        (str(ROOT), "the folder has no config.json; pass the folder that save_pretrained wrote"),
    ],
    ids=["here", "absolute", "deep", "no id", "file", "no checkpoint"],
)
def test_a_name_that_is_no_checkpoint_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find(name)


def test_without_a_network_the_error_names_the_cache_and_the_fix() -> None:
    """The tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(
        InputError, match=r"not in the local cache; HF_HUB_OFFLINE keeps it .* unset"
    ):
        find("owner/name")


def test_a_cache_that_cannot_be_written_is_not_reported_as_a_missing_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str, file: str) -> None:
        raise PermissionError(13, "Permission denied", "cache")

    there = ModelInfo(id="owner/name", siblings=[])
    monkeypatch.setattr("vtfast.inputs.hub.HfApi.model_info", lambda *_, **__: there)
    monkeypatch.setattr("vtfast.inputs.hub.hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"cannot be kept in .*Permission denied.*set HF_HOME to"):
        find("owner/name")


def _break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncate_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100_000])


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _widen(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    configure(folder, text_config={**text, "vocab_size": text["vocab_size"] + 8})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_break_json, "cannot load its configuration: .*not a valid JSON file"),
        (_drop_tokenizer, "the vocabulary is missing "),
        (_drop_weights, "cannot load its weights: .*no file named model.safetensors"),
        (_truncate_weights, "cannot load its weights: "),
        (_lose_a_tensor, r"1 tensors of the model .*, such as \S+\.0\.mlp\.up_proj\.weight; d"),
        (_widen, "cannot load its weights: "),
    ],
    ids=["json", "no tokenizer", "no weights", "truncated weights", "lost tensor", "other sizes"],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(folder: Path, damage, says: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        find(str(folder)).weights(CPU, "auto")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("banana", "--device banana: unknown to torch; pass auto, cpu or cuda"),
        ("meta", "--device meta: .*; pass auto or cpu"),
        ("cuda:77", "--device cuda:77: .*; pass auto or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        device_named(name)


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_named("cpu") == CPU


# What a folder lacks beside its weights


@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize(
    "others",
    [(), ("chat_template.jinja",), ("processor_config.json", "preprocessor_config.json")],
    ids=["alone", "and a template", "and a processor"],
)
def test_of_missing_files_the_vocabulary_is_named_first(
    tmp_path: Path, name: str, others: tuple[str, ...]
) -> None:
    """A trainer that saves the model alone leaves all of them out."""
    folder = Path(shutil.copytree(BUNDLED.with_name(name), tmp_path / "checkpoint"))
    for file in ("tokenizer.json", "tokenizer_config.json", *others):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"the vocabulary is missing \(tokenizer\.json or .*save"):
        find(str(folder))


@pytest.mark.parametrize(
    ("name", "file"), [("llava", "processor_config.json"), ("qwen", "preprocessor_config.json")]
)
def test_a_missing_picture_processor_is_named(tmp_path: Path, name: str, file: str) -> None:
    folder = Path(shutil.copytree(BUNDLED.with_name(name), tmp_path / "checkpoint"))
    (folder / file).unlink()
    with pytest.raises(InputError, match=r"the picture processor is missing .*save_pretrained"):
        find(str(folder))


def test_a_tokenizer_of_another_model_is_refused_before_it_counts_no_pictures(
    tmp_path: Path,
) -> None:
    """Without tokenizer_config.json transformers takes the names of Qwen's own tokens."""
    folder = Path(shutil.copytree(BUNDLED.with_name("qwen"), tmp_path / "checkpoint"))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"has <\|image_pad\|> as token \d+, config\.json expects"):
        find(str(folder))
