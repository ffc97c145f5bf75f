"""Every command with a checkpoint folder of every family: tiny, with random weights.

`run` and `evaluate` are tried with all families; the others with those that VTFAST_TEST_FAMILIES
names, else LLaVA and Qwen2.5-VL.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from command import answered, call, refused
from PIL import Image
from tiny_checkpoints import BUILT, TOKENS, write_checkpoint
from tiny_models import FAMILIES

from vtfast.inputs.checkpoints import quiet
from vtfast.toy.scene import Scene

# The stock processors of GLM-4V and InternVL hand tensors to NumPy in a way that it will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

LINE_ENDS = {"llava-next": 8, "llava-onevision": 8}  # tokens that are no patch
QUESTION = ("--prompt", "what is this ?")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of checkpoints, written when first asked for."""
    folder, written = tmp_path_factory.mktemp("checkpoints"), {}

    def write(name):
        if name not in written:
            with quiet():
                written[name] = write_checkpoint(name, folder / name)
        return written[name]

    return write


@pytest.fixture
def model(checkpoints, name, tmp_path, monkeypatch):
    """The options that name a family's checkpoint; pictures and questions lie in this folder."""
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
    monkeypatch.chdir(tmp_path)
    rows = []
    for seed, size in enumerate(((110, 80), (60, 120))):
        Scene.from_seed(seed).picture().resize(size).save(f"{seed}.png")
        rows.append({"image": f"{seed}.png", "question": "what is this ?", "answer": "a car"})
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ("--model", checkpoints(name), "--device", "cpu")


@pytest.mark.parametrize("name", BUILT)
def test_run_tells_and_draws_what_was_kept_of_two_pictures(model, name):
    asked = ("--image", "0.png", "--image", "1.png", *QUESTION, "--max-new-tokens", "2")
    record = json.loads(answered("run", *model, *asked, "--out", "kept.png", "--json").stdout)
    first, second = record["visual_tokens_per_picture"]
    assert first == (37 if name == "llava-onevision" else TOKENS[name])
    assert first + second == record["visual_tokens"]
    (run,) = record["runs"]
    assert run["visual_tokens_average"] == pytest.approx(record["visual_tokens"] / 2, abs=1.5)
    assert 0 < run["flops_ratio"] < 1
    with Image.open("kept.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("name", BUILT)
def test_evaluate_asks_all_questions_of_a_file(model, name):
    plans = ("--plan", "uniform", "--plan", "divprune+random", "--keep", "0.5")
    record = json.loads(
        answered("evaluate", *model, "--data", "mine.jsonl", *plans, "--json").stdout
    )
    assert record["samples"] == 2
    full, *pruned = (row["average_tokens"] for row in record["rows"])
    assert full > TOKENS[name] / 2
    assert pruned == pytest.approx([full / 2] * 2, abs=1.5)


@pytest.mark.parametrize("name", BUILT)
def test_a_clip_is_taken_or_refused_with_what_to_do(model, name):
    frames = ("--video", "0.png", "--video", "0.png")
    result = call("run", *model, *frames, *QUESTION, "--max-new-tokens", "2", "--json")
    if name in ("qwen2", "qwen") or (find_spec("torchvision") and result.exit_code == 0):
        assert json.loads(result.stdout)["visual_tokens"] == TOKENS[name]  # two frames a step
    else:
        says = r"clips only with torchvision; install it|takes no video; pass frames with --image"
        assert re.search(says, refused(result))


@pytest.mark.parametrize("name", FAMILIES)
def test_run_streams_and_compares(model, name):
    asked = ("--image", "0.png", *QUESTION, "--max-new-tokens", "2", "--compare")
    shown = answered("run", *model, *asked, "--plan", "uniform").stdout
    assert f"6 layers, {TOKENS[name]} visual and" in shown
    assert re.search(r"visual tokens, average of layers +\d", shown)


@pytest.mark.parametrize("name", FAMILIES)
def test_score_draws_units_of_every_picture(model, name):
    options = ("--data", "mine.jsonl", "--sample", "all", "--layers", "0,5", "--window", "1")
    record = json.loads(answered("score", *model, *options, "--out", "s.png", "--json").stdout)
    first = [p for p in record["pictures"] if p["sample"] == 0]
    assert {p["number"] for p in record["pictures"]} == {0}  # one in each sample
    assert [p["part"] for p in first] == list(range(len(first)))
    assert sum(len(p["scores"][0]) for p in first) == TOKENS[name] - LINE_ENDS.get(name, 0)
    assert Path("s.png").stat().st_size > 1000


@pytest.mark.parametrize("name", FAMILIES)
def test_horizon_is_measured(model, name):
    options = ("--data", "mine.jsonl", "--maps", "1", "--layers", "0,3,5", "--out", "h.png")
    record = json.loads(answered("horizon", *model, *options, "--json").stdout)
    assert record["samples"] == 2
    assert record["num_layers"] == 6


@pytest.mark.parametrize("name", FAMILIES)
def test_sweep_has_a_row_for_every_layer_and_method(model, name):
    options = ("--data", "mine.jsonl", "--methods", "random,diversity", "--layers", "0,3")
    record = json.loads(answered("sweep", *model, *options, "--keep", "0.5", "--json").stdout)
    assert len(record["rows"]) == 4
