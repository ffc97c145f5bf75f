"""A PEFT adapter named as the model: loaded with its base, or refused in one line."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import vtfast
from vtfast import toy
from vtfast.errors import InputError, UnsupportedModelError
from vtfast.inputs import checkpoints
from vtfast.inputs.checkpoints import find
from vtfast.toy.model import CHECKPOINTS

CPU = torch.device("cpu")
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter folder without weights; peft passes for installed."""
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: object())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    return adapter


def names(folder: Path, base: object) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(folder)


@pytest.fixture(scope="module", params=["llava", "qwen"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """An adapter folder as PEFT writes it, a batch for the model, and the model's logits."""
    peft = pytest.importorskip("peft")
    base = find(str(CHECKPOINTS / request.param))
    settings = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    )
    model = peft.get_peft_model(base.weights(CPU, "auto"), settings).eval()
    folder = tmp_path_factory.mktemp("adapters") / request.param
    model.save_pretrained(folder)
    pictures, questions, _ = toy.scenes(1, 5, "code")
    text = toy.prompt(base.processor, questions[0])
    inputs = base.processor(text=[text], images=pictures, return_tensors="pt")
    with torch.no_grad():
        return folder, inputs, model(**inputs).logits


@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_loaded_with_its_base(trained) -> None:
    folder, inputs, logits = trained
    model = find(str(folder)).weights(CPU, "auto")
    with torch.no_grad(), vtfast.patch(model, keep=1.0):
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-4, rtol=0)


@needs_peft
def test_an_adapters_own_processor_is_taken_if_it_is_complete(trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained[0], tmp_path / "adapter"))
    processor = find(str(folder)).processor
    processor.chat_template = "own"
    processor.save_pretrained(folder)
    found = find(str(folder)).processor
    assert type(found) is type(processor)
    assert found.chat_template == "own"


@needs_peft
def test_an_adapter_that_does_not_fit_its_base_is_refused(trained, tmp_path: Path) -> None:
    """PEFT goes on with layers that change nothing."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(trained[0], tmp_path / "adapter"))
    file = folder / "adapter_model.safetensors"
    renamed = {name.replace("layers", "blocks"): t for name, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="cannot load its adapter: Found missing adapter keys"):
        find(str(folder)).weights(CPU, "auto")


# What is refused, with no weights read


def test_an_adapter_is_found_by_its_base(folder: Path) -> None:
    found = find(names(folder, str(CHECKPOINTS / "llava")))
    assert found.base is not None
    assert found.config.model_type == "llava"


def test_without_peft_the_base_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is a PEFT adapter of some/base; pip install peft, or"):
        find(names(folder, "some/base"))


@pytest.mark.parametrize("base", [None, ""])
def test_an_adapter_without_a_base_is_refused(folder: Path, base: object) -> None:
    with pytest.raises(InputError, match="does not name its base model; write it in adapter_conf"):
        find(names(folder, base))


def test_a_base_that_cannot_be_loaded_is_named_with_the_reason(folder: Path) -> None:
    says = r"adapter is a PEFT adapter of ./gone, which cannot be used: .*there is no such folder"
    with pytest.raises(InputError, match=says):
        find(names(folder, "./gone"))


def test_a_base_that_vtfast_cannot_prune_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedModelError, match=r"is a PEFT adapter of \S+base, which cannot"):
        find(names(folder, str(tmp_path / "base")))


def test_a_checkpoint_with_all_its_weights_is_no_adapter(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "llava", tmp_path / "merged"))
    assert find(names(folder, "some/base")).base is None


def test_a_configuration_beside_an_adapter_does_not_make_it_a_checkpoint(folder: Path) -> None:
    """Some trainers write config.json for servers that ask for it."""
    shutil.copy(CHECKPOINTS / "llava" / "config.json", folder)
    assert find(names(folder, str(CHECKPOINTS / "llava"))).base is not None


def test_a_damaged_configuration_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot load its adapter's configuration: "):
        find(str(folder))
