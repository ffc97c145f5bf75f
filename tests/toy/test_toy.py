"""The bundled models: they load as promised, and their recorded horizons are the measured ones.

How well they answer is tested in tests/evaluation/test_accuracy.py.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_scores import SCENES as N
from toy_scores import SEED as FRESH_SEED
from toy_scores import bundled as loaded_once
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtfast import information, toy
from vtfast.errors import VTFastError
from vtfast.toy import evaluate
from vtfast.toy.model import family_of
from vtfast.toy.words import EOS

FOLDER = Path(toy.__file__).parent / "checkpoints" / "llava"
NAMES = ("llava", "llava-small", "qwen", "qwen3")

each_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def bundled():
    return loaded_once("llava")


def card(name):
    return json.loads((FOLDER.parent / name / "training.json").read_text())


@each_model
def test_a_checkpoint_is_at_most_7_megabytes(name):
    assert sum(file.stat().st_size for file in (FOLDER.parent / name).iterdir()) <= 7_000_000


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, vtfast.toy; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_needs_neither_network_nor_torchvision():
    code = """
import socket, sys

def refuse(*_, **__):
    raise OSError("the network was used")

sys.modules["torchvision"] = None
socket.socket.connect = socket.getaddrinfo = refuse
import vtfast.toy

pictures, questions, answers = vtfast.toy.scenes(1, 0, "background")
for name in sys.argv[1:]:
    model, processor = vtfast.toy.load(name)
    text = vtfast.toy.prompt(processor, questions[0])
    inputs = processor(images=pictures, text=text, return_tensors="pt")
    said = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    print(name, processor.decode(said, skip_special_tokens=True) == answers[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *NAMES],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} True" for name in NAMES], done.stderr


def test_stock_auto_classes_load_the_folder_and_give_the_same_logits(bundled):
    stock = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(FOLDER)
    pictures, questions, _ = toy.scenes(3, 0, "digit")
    texts = [toy.prompt(processor, question) for question in questions]
    inputs = processor(images=[[p] for p in pictures], text=texts, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(stock(**inputs).logits, bundled[0](**inputs).logits)


@each_model
def test_load_gives_the_dtype_asked_for_in_eval_mode(name):
    loaded, _ = toy.load(name, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_the_prompt_is_llavas_and_an_image_is_64_tokens(bundled):
    text = toy.prompt(bundled[1], "read the code .")
    assert text == "USER: <image>\nread the code . ASSISTANT:"
    inputs = bundled[1](images=toy.scenes(1, 0, "code")[0], text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == bundled[0].config.image_token_id).sum()) == 64


@each_model
def test_the_recorded_horizon_is_the_measured_one(name):
    """The layer before it is not within tolerance, and it and all after it are.

    By the losses alone, which decide in these tasks: scoring every token takes much longer.
    """
    loaded, processor = loaded_once(name)
    recorded = card(name)
    hardest = max(reversed(toy.TASKS), key=lambda task: recorded["horizon"][task] or 0)
    seed, sizes = recorded["settings"]["seed"], family_of(loaded).SIZES
    scenes = evaluate.dataset(processor, hardest, N, seed, sizes)
    layer = recorded["horizon"][hardest]
    layers = range(layer - 1, loaded.config.text_config.num_hidden_layers)
    found = information.horizon(loaded, scenes, layers=layers, maps=0, batch=50, progress=False)
    assert isinstance(loaded.config.vtfast_horizon, int)
    assert loaded.config.vtfast_horizon == layer == found.layer


@each_model
def test_the_model_card_says_how_the_model_was_made_and_how_good_it_is(name):
    written = card(name)
    assert written["settings"]["seed"] != FRESH_SEED
    assert written["settings"]["n_eval"] >= N
    assert set(written["versions"]) == {"python", "torch", "transformers"}
    assert min(written["accuracy"][task] for task in toy.TASKS) >= 0.97


def test_a_model_that_is_not_bundled_is_refused_naming_those_that_are():
    with pytest.raises(VTFastError, match=f"no toy model 'gpt'; available: {', '.join(NAMES)}"):
        toy.load("gpt")


@pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
def test_accuracy_with_all_tokens_is_that_of_greedy_generation_on_a_model_with_errors(name):
    loaded, processor = copy.deepcopy(loaded_once(name)[0]), loaded_once(name)[1]
    sizes = family_of(loaded).SIZES
    weight = loaded.lm_head.weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight += 1.5 * weight.std() * noise
    asked = {"task": "code", "n": 100, "seed": FRESH_SEED, "sizes": sizes}
    exact = evaluate.accuracy(loaded, processor, **asked)
    assert 0.2 < exact < 0.8
    measured = evaluate.horizon(loaded, processor, maps=0, **asked)
    assert measured.accuracy_full.mean == (exact,)


@pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
def test_dropping_from_a_layer_equals_hiding_the_visual_keys_from_that_layer_on(name):
    loaded, processor = loaded_once(name)
    n, task = 40, "digit"
    pictures, questions, answers = toy.scenes(n, FRESH_SEED, task)
    texts = [f"{toy.prompt(processor, q)} {a}" for q, a in zip(questions, answers, strict=True)]
    inputs = processor(images=[[p] for p in pictures], text=texts, return_tensors="pt")
    ids = inputs["input_ids"]
    hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    hidden |= (ids[0] == loaded.config.image_token_id)[None, :]
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -1e9)[None, None]

    def hide(_, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    measured = evaluate.horizon(loaded, processor, task, n=n, seed=FRESH_SEED, maps=0)
    (full,) = measured.accuracy_full.mean
    for layer in (0, 5, 7):
        layers = loaded.model.language_model.layers[layer:]
        hooks = [one.register_forward_pre_hook(hide, with_kwargs=True) for one in layers]
        with torch.inference_mode():
            said = loaded(**inputs, use_cache=False).logits.argmax(-1)
        for hook in hooks:
            hook.remove()
        right = (said[:, -2] == ids[:, -1]) & (said[:, -1] == EOS)
        lost = measured.curves["accuracy_loss"].mean[layer]
        assert full - lost == pytest.approx(right.sum().item() / n)


def test_the_hardest_task_with_a_horizon_decides():
    horizons = dict.fromkeys(toy.TASKS, 3) | {"code": None, "digit": 9}
    assert evaluate.hardest_horizon(horizons) == 9
    assert evaluate.hardest_horizon(dict.fromkeys(toy.TASKS)) is None
