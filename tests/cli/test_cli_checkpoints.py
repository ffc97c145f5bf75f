"""Which model --model, --device and --dtype mean: bundled models, and folders of the same name."""

import shutil

import pytest
import torch
from command import checkpoint

from vtfast.errors import InputError
from vtfast.toy.model import CHECKPOINTS

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["toy-llava", "toy-llava-small", "toy-qwen", "toy-qwen3"])
def test_a_bundled_model_is_found_by_its_name(name: str) -> None:
    model = checkpoint(name).weights(CPU, "auto")
    assert model.config.get_text_config().num_hidden_layers == {"toy-llava": 12}.get(name, 8)
    assert model.dtype == torch.float32


def test_a_bundled_model_takes_the_dtype_that_is_asked_for() -> None:
    assert checkpoint("toy-llava-small").weights(CPU, "bfloat16").dtype == torch.bfloat16


def test_a_folder_takes_precedence_over_a_bundled_name(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CHECKPOINTS / "llava", tmp_path / "toy-llava")
    monkeypatch.chdir(tmp_path)
    assert checkpoint("toy-llava").model is None


def test_an_unknown_bundled_model_is_refused_with_the_known_names() -> None:
    line = "--model toy-nonesuch: there is no toy model 'toy-nonesuch'; available: toy-llava, "
    with pytest.raises(InputError, match=line):
        checkpoint("toy-nonesuch")
