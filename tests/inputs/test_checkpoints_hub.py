"""Checkpoints by hub id: downloaded, taken from the cache, or refused with the reason.

The hub is a server on this machine (`fake_hub.py`), asked over HTTP by huggingface_hub itself.
"""

from pathlib import Path

import pytest
from command import call
from fake_hub import hub
from huggingface_hub import constants

from vtfast import toy
from vtfast.errors import InputError
from vtfast.inputs import checkpoints
from vtfast.inputs.checkpoints import load_processor
from vtfast.processors import Qwen25VLProcessor
from vtfast.toy.model import CHECKPOINTS


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """`vtfast run` of several hub ids, by label: exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("hub")
    (picture,), _, _ = toy.scenes(1, 0, "code")
    picture.save(folder / "scene.png")
    models = {"tiny/llava": CHECKPOINTS / "llava"}
    for name, file in (("empty", "README.md"), ("adapter", "adapter_config.json")):
        models[f"tiny/{name}"] = folder / name
        (folder / name).mkdir()
        (folder / name / file).write_text('{"base_model_name_or_path": "tiny/base"}')
    results = {}
    with pytest.MonkeyPatch.context() as patch, hub(models) as endpoint:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

        def run(label: str, model: str | Path) -> None:
            options = ("--image", folder / "scene.png", "--prompt", "read the code .")
            result = call("run", "--model", model, *options)
            stderr = result.stderr.replace(constants.ENDPOINT, "ENDPOINT")
            results[label] = (result.exit_code, result.stdout, stderr)

        for model in ("nobody/nothing", "nobody", "somebody/gated", "somebody/down", "tiny/empty"):
            run(model, model)
        patch.setattr(checkpoints, "find_spec", lambda name: None)
        run("tiny/adapter", "tiny/adapter")
        run("hub", "tiny/llava")
        gone = "http://127.0.0.1:1"  # nothing listens there, and that is noticed at once
        patch.setattr(constants, "ENDPOINT", gone)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(endpoint, gone))
        run("hub is gone, in the cache", "tiny/llava")
        run("hub is gone", "tiny/other")
        run("hub is gone, an adapter in the cache", "tiny/adapter")
    return results


def test_a_hub_id_is_downloaded_and_answers(from_hub: dict) -> None:
    code, stdout, stderr = from_hub["hub"]
    assert (code, stderr) == (0, "")
    (answer,) = toy.scenes(1, 0, "code")[2]
    assert stdout.startswith(f"{answer}\n")


def test_a_hub_id_in_the_cache_needs_no_network(from_hub: dict) -> None:
    code, stdout, stderr = from_hub["hub is gone, in the cache"]
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[0] == from_hub["hub"][1].splitlines()[0]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (
            "nobody/nothing",
            "ENDPOINT has no such model, or it is private; check the spelling, or l",
        ),
        ("nobody", "there is no such folder here, and ENDPOINT has no such model"),
        (
            "somebody/gated",
            "the model is gated; accept its terms at ENDPOINT/somebody/gated, then ",
        ),
        ("somebody/down", "ENDPOINT answers with status 503; try again later, or pass a local fol"),
        ("tiny/empty", "the repository has no config.json, so transformers cannot load it"),
        ("tiny/adapter", "is a PEFT adapter of tiny/base; pip install peft, or pass a checkpoint"),
        ("hub is gone", "ENDPOINT cannot be reached ("),
        (
            "hub is gone, an adapter in the cache",
            "is a PEFT adapter of tiny/base; pip install peft",
        ),
    ],
)
def test_every_refusal_of_the_hub_has_a_line_of_its_own(
    from_hub: dict, label: str, says: str
) -> None:
    code, stdout, stderr = from_hub[label]
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: --model ")
    assert says in line


def test_without_torchvision_a_qwen_gets_the_processor_of_vtfast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answers with it are those of every other test of a bundled Qwen2.5-VL."""

    def refuse(*arguments: object, **options: object) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library")

    monkeypatch.setattr("vtfast.processors.AutoProcessor.from_pretrained", refuse)
    assert type(load_processor(str(CHECKPOINTS / "qwen"))) is Qwen25VLProcessor


def test_another_missing_package_is_not_taken_for_torchvision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ImportError("no module named 'sentencepiece'")

    monkeypatch.setattr("vtfast.processors.AutoProcessor.from_pretrained", refuse)
    with pytest.raises(InputError, match="cannot load its processor: no module named 'sentence"):
        load_processor(str(CHECKPOINTS / "qwen"))
