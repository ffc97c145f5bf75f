"""Checkpoints by hub id: downloaded, taken from the cache, or refused with the reason.

The hub is a server on this machine (`fake_hub.py`), asked over HTTP by huggingface_hub itself.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from vtfast import toy

BUNDLED = Path(toy.__file__).parent / "checkpoints" / "llava"

HUB = """
import json, os, sys
from pathlib import Path
from tempfile import TemporaryDirectory
sys.path[:0] = [{root!r}, {tests!r}]
sys.modules["torchvision"] = None
from fake_hub import hub
models = {{"tiny/llava": Path({bundled!r}), "tiny/empty": Path({empty!r})}}
results = {{}}
with TemporaryDirectory() as home:
    os.environ["HF_HOME"] = home
    os.environ.pop("HF_HUB_OFFLINE", None)
    with hub(models) as endpoint:
        os.environ["HF_ENDPOINT"] = endpoint
        from command import call

        def run(label, model):
            options = ["--image", {picture!r}, "--prompt", "read the code ."]
            result = call("run", "--model", model, *options)
            stderr = result.stderr.replace(endpoint, "ENDPOINT")
            results[label] = [result.exit_code, result.stdout, stderr]

        for model in ("nobody/nothing", "nobody", "somebody/gated", "somebody/down", "tiny/empty"):
            run(model, model)
        run("hub", "tiny/llava")
    run("a Qwen2.5-VL", {qwen!r})
    run("hub is gone, in the cache", "tiny/llava")
    run("hub is gone", "tiny/other")
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """`vtfast run` of several hub ids, by label: exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("hub")
    empty = folder / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("no model")
    (picture,), _, _ = toy.scenes(1, 0, "code")
    picture.save(folder / "scene.png")
    places = {"root": ROOT, "tests": ROOT / "tests" / "helpers", "bundled": BUNDLED, "empty": empty}
    places |= {"qwen": BUNDLED.with_name("qwen"), "picture": folder / "scene.png"}
    code = HUB.format(**{key: str(path) for key, path in places.items()})
    # A server that is gone must be noticed at once: each retry of transformers takes half a minute.
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
        ("hub is gone", "ENDPOINT cannot be reached ("),
    ],
)
def test_what_the_hub_refuses_is_told_apart_in_one_line(
    from_hub: dict, label: str, says: str
) -> None:
    code, stdout, stderr = from_hub[label]
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: --model ")
    assert says in line


def test_a_qwen_answers_without_torchvision(from_hub: dict) -> None:
    code, stdout, stderr = from_hub["a Qwen2.5-VL"]
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[0] == from_hub["hub"][1].splitlines()[0]
