"""The bundled model and its drawn scenes: what they promise, and that training makes such a model.

Accuracies are exact matches of greedy generation on scenes whose seed training never saw.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtfast import toy
from vtfast.errors import InputError, VTFastError
from vtfast.toy import evaluate, lessons, model, train
from vtfast.toy.scene import COLOURS, GLYPHS, SHAPES, Scene, scene_list

FOLDER = Path(toy.__file__).parent / "checkpoints" / "llava"
FRESH_SEED = 20_000
N = 500


@pytest.fixture(scope="module")
def bundled():
    return toy.load("llava", dtype=torch.float32)


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / "training.json").read_text())


@pytest.fixture(scope="module")
def untrained():
    return model.build_model(layers=2, seed=3).eval()


def as_bytes(result):
    pictures, questions, answers = result
    return [picture.tobytes() for picture in pictures], questions, answers


def nearest_colour(pixels):
    """Names of the palette colours nearest to `pixels` [..., 3]."""
    palette = np.array(list(COLOURS.values()), np.float32)
    distance = np.abs(pixels[..., None, :].astype(np.float32) - palette).sum(-1)
    return np.array(list(COLOURS))[distance.argmin(-1)]


# Scenes


@pytest.mark.parametrize("task", toy.TASKS)
def test_scenes_are_the_same_every_time(task):
    assert as_bytes(toy.scenes(4, 5, task)) == as_bytes(toy.scenes(4, 5, task))


@pytest.mark.parametrize("task", toy.TASKS)
def test_a_longer_list_of_scenes_begins_with_the_shorter_one(task):
    longer = as_bytes(toy.scenes(7, 5, task))
    assert as_bytes(toy.scenes(3, 5, task)) == tuple(part[:3] for part in longer)


def test_seed_and_task_choose_the_scenes():
    drawn = [scene_list(5, seed, task) for seed in (0, 1) for task in toy.TASKS]
    assert len({scene for scenes in drawn for scene in scenes}) == 5 * len(drawn)


def test_pictures_are_96_pixel_rgb():
    picture, *_ = toy.scenes(1, 0, "code")[0]
    assert (picture.size, picture.mode) == ((96, 96), "RGB")


def test_no_scenes_are_three_empty_lists():
    assert toy.scenes(0, 0, "code") == ([], [], [])


def test_the_background_answer_is_the_most_frequent_colour():
    for scene in scene_list(60, 1, "background"):
        (most, _), *_ = Counter(nearest_colour(scene.pixels()).flat).most_common()
        assert scene.question("background")[1] == most


def test_the_shape_colour_answer_is_the_colour_at_the_shapes_centre():
    for scene in scene_list(60, 1, "shape_colour"):
        y, x = scene.layout.shape_top + 20, scene.layout.shape_x
        patch = nearest_colour(scene.pixels()[y - 3 : y + 4, x - 3 : x + 4])
        assert set(patch.flat) == {scene.question("shape_colour")[1]}


def test_the_shape_answer_is_the_outline_drawn():
    # Filled at (0.85, 0.85), (0.85, -0.85), (0.6, 0.6), (0.45, 0.45) radii from the centre?
    outlines = {
        (False, False, True, True): "circle",
        (True, True, True, True): "square",
        (True, False, True, True): "triangle",
        (False, False, False, True): "diamond",
        (False, False, False, False): "cross",
    }
    asked = set()
    for scene in scene_list(60, 1, "shape"):
        names, radius = nearest_colour(scene.pixels()), scene.layout.shape_radius
        y, x = scene.layout.shape_top + 20, scene.layout.shape_x
        probes = ((0.85, 0.85), (0.85, -0.85), (0.6, 0.6), (0.45, 0.45))
        at = [(round(y + down * radius), round(x + right * radius)) for right, down in probes]
        filled = tuple(bool(names[place] == scene.shape_colour) for place in at)
        assert scene.question("shape")[1] == outlines[filled]
        asked.add(outlines[filled])
    assert asked == set(SHAPES)


def test_the_count_answer_is_the_number_of_cells_drawn():
    for scene in scene_list(60, 1, "count"):
        row = nearest_colour(scene.pixels()[scene.layout.cells_top + 3])  # above the digits
        runs = [row[i] for i in range(96) if i == 0 or row[i] != row[i - 1]]
        cells = [colour for colour in runs if colour != scene.background]
        assert scene.question("count")[1] == str(len(cells))
        assert cells == [cell.colour for cell in scene.cells]


@pytest.mark.parametrize("part", ["digit", "code"])
def test_another_glyph_changes_its_answer_and_its_band_of_the_picture_only(part):
    for scene in scene_list(20, 1, part):
        if part == "digit":
            cells = list(scene.cells)
            digit = str((int(cells[scene.asked].digit) + 1) % 10)
            cells[scene.asked] = dataclasses.replace(cells[scene.asked], digit=digit)
            other, top = dataclasses.replace(scene, cells=tuple(cells)), scene.layout.cells_top
        else:
            glyph = "A" if scene.code[1] != "A" else "X"
            code = scene.code[0] + glyph + scene.code[2]
            other, top = dataclasses.replace(scene, code=code), scene.layout.code_top
        assert other.question(part)[1] != scene.question(part)[1]
        rows = np.flatnonzero((other.pixels() != scene.pixels()).any((1, 2)))
        assert len(rows) > 0
        assert top <= rows.min() <= rows.max() < top + 26


def test_the_digit_question_names_the_cell_it_is_about():
    for scene in scene_list(20, 1, "digit"):
        for k, cell in enumerate(scene.cells):
            asked = f"which digit is in the {cell.colour} cell ?"
            assert scene.question("digit", cell=k) == (asked, cell.digit)


def test_every_word_of_every_question_and_answer_has_a_token():
    words = {
        w for t in toy.TASKS for s in scene_list(50, 2, t) for w in " ".join(s.question(t)).split()
    }
    assert words <= set(model.WORDS)


def test_glyph_labels_name_the_glyphs_of_the_scene_but_for_a_narrow_1():
    for scene in scene_list(20, 1, "code"):
        seen = {GLYPHS[i - 1] for i in scene.glyph_labels(model.PATCH) if i}
        written = set(scene.code) | {cell.digit for cell in scene.cells}
        assert written - {"1"} <= seen <= written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, "smell"), "task='smell' is not a task"),
        ((-1, 0, "code"), "n=-1 but"),
        ((1, 0.5, "code"), "seed=0.5 but"),
        ((True, 0, "code"), "n=True but"),
    ],
    ids=["task", "negative", "float", "bool"],
)
def test_bad_scene_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        toy.scenes(*arguments)


# The bundled model


def test_the_checkpoint_is_at_most_7_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 7_000_000


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

model, processor = vtfast.toy.load("llava")
pictures, questions, answers = vtfast.toy.scenes(1, 0, "background")
inputs = processor(
    images=pictures, text=vtfast.toy.prompt(processor, questions[0]), return_tensors="pt"
)
said = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(said, skip_special_tokens=True) == answers[0])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_stock_auto_classes_load_the_folder_and_give_the_same_logits(bundled):
    stock = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(FOLDER)
    pictures, questions, _ = toy.scenes(3, 0, "digit")
    texts = [toy.prompt(processor, question) for question in questions]
    inputs = processor(images=[[p] for p in pictures], text=texts, return_tensors="pt")
    with torch.inference_mode():
        assert torch.equal(stock(**inputs).logits, bundled[0](**inputs).logits)


def test_load_gives_the_dtype_asked_for_in_eval_mode():
    loaded, _ = toy.load("llava", dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert not loaded.training


def test_the_prompt_is_llavas_and_an_image_is_64_tokens(bundled):
    text = toy.prompt(bundled[1], "read the code .")
    assert text == "USER: <image>\nread the code . ASSISTANT:"
    inputs = bundled[1](images=toy.scenes(1, 0, "code")[0], text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == bundled[0].config.image_token_id).sum()) == 64


@pytest.mark.parametrize("task", toy.TASKS)
def test_97_percent_of_fresh_scenes_are_answered_exactly(bundled, task):
    assert evaluate.accuracy(*bundled, task, n=N, seed=FRESH_SEED) >= 0.97


def test_the_recorded_horizon_is_the_measured_one(bundled, card):
    hardest = next(t for t in reversed(toy.TASKS) if card["horizon"][t] is not None)
    curve = evaluate.drop_all_curve(*bundled, hardest, n=N, seed=card["settings"]["seed"])
    recorded = bundled[0].config.vtfast_horizon
    assert isinstance(recorded, int)
    assert recorded == evaluate.horizon(curve)


def test_the_model_card_says_how_the_model_was_made_and_how_good_it_is(card):
    assert card["settings"]["seed"] != FRESH_SEED
    assert card["settings"]["n_eval"] >= N
    assert set(card["versions"]) == {"python", "torch", "transformers"}
    assert min(card["accuracy"][task] for task in toy.TASKS) >= 0.97


@pytest.mark.parametrize("name", ["llava-small", "qwen", "gpt"])
def test_a_model_that_is_not_bundled_is_refused_naming_those_that_are(name):
    reason = "there is no toy model" if name == "gpt" else "is not in this version yet"
    with pytest.raises(VTFastError, match=rf"{reason}.*available: llava") as caught:
        toy.load(name)
    assert name in str(caught.value)


# Measuring


def test_dropping_nothing_is_as_exact_as_greedy_generation(bundled):
    curve = evaluate.drop_all_curve(*bundled, "code", n=200, seed=FRESH_SEED)
    assert curve[-1] == evaluate.accuracy(*bundled, "code", n=200, seed=FRESH_SEED)


@pytest.mark.parametrize("layer", [0, 5, 9])
def test_dropping_from_a_layer_equals_hiding_the_visual_keys_from_that_layer_on(bundled, layer):
    loaded, processor = bundled
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

    layers = loaded.model.language_model.layers[layer:]
    hooks = [one.register_forward_pre_hook(hide, with_kwargs=True) for one in layers]
    with torch.inference_mode():
        said = loaded(**inputs, use_cache=False).logits.argmax(-1)
    for hook in hooks:
        hook.remove()
    ends = torch.full((n,), model.EOS)
    right = (said[:, -2] == ids[:, -1]) & (said[:, -1] == ends)
    curve = evaluate.drop_all_curve(*bundled, task, n=n, seed=FRESH_SEED)
    assert curve[layer] == right.float().mean().item()


@pytest.mark.parametrize(
    ("curve", "layer"),
    [
        ([0.1, 0.5, 0.99, 1.0], 2),
        ([0.1, 1.0, 0.9, 1.0, 1.0], 3),
        ([1.0, 1.0, 1.0], 0),
        ([0.1, 0.5, 0.98, 1.0], None),
    ],
    ids=["rises", "dips again", "needs no picture", "needs all layers"],
)
def test_the_horizon_is_the_first_layer_from_which_on_the_loss_stays_within_a_point(curve, layer):
    assert evaluate.horizon(curve) == layer


def test_the_hardest_task_with_a_horizon_decides():
    horizons = dict.fromkeys(toy.TASKS, 3) | {"code": None, "digit": 9}
    assert evaluate.hardest_horizon(horizons) == 9
    assert evaluate.hardest_horizon(dict.fromkeys(toy.TASKS)) is None


# Training


def test_a_packed_turn_is_seen_as_if_it_were_alone(untrained):
    trainer = train.Trainer(train.Settings(layers=2, seed=3))
    scene, processor = Scene.from_seed(1), model.build_processor()
    turns = [lessons.turn(scene, task) for task in lessons.TURNS]
    packed = lessons.draw_batch(np.random.default_rng(0), 1)
    pixels = torch.from_numpy(scene.pixels()).permute(2, 0, 1)[None].float() / 255
    row = dataclasses.replace(
        packed,
        pixels=(pixels - model.PIXEL_MEAN) / model.PIXEL_STD,
        ids=torch.tensor([[token for ids, _ in turns for token in ids]]),
    )
    with torch.inference_mode():
        together = trainer.model.lm_head(trainer._forward(row)[0])[0]
        for task, part in zip(lessons.TURNS, together.split(lessons.turn_lengths()), strict=True):
            question, answer = scene.question(task)
            text = f"{toy.prompt(processor, question)} {answer}"
            inputs = processor(images=scene.picture(), text=text, return_tensors="pt")
            alone = untrained(**inputs).logits[0, -len(part) :]
            torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)


def test_the_seed_decides_the_weights():
    def first_weights(seed):
        trainer = train.Trainer(train.Settings(layers=1, batch=2, seed=seed))
        source = lessons.batches(seed, 2)
        trainer.step(0, next(source))
        source.close()
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    assert torch.equal(first_weights(4), first_weights(4))
    assert not torch.equal(first_weights(4), first_weights(5))


def test_steps_on_one_batch_lower_its_loss():
    trainer = train.Trainer(train.Settings(layers=1, steps=10))
    batch = lessons.draw_batch(np.random.default_rng(0), 4)
    losses = [trainer.step(number, batch)["loss"] for number in range(10)]
    assert losses[-1] < losses[0] - 0.05


def test_the_learning_rate_warms_up_stays_and_falls_to_two_percent():
    factor = [train.learning_rate_factor(step, 1600) for step in range(1600)]
    assert factor[0] == 1 / 80
    assert factor[79] == factor[799] == 1
    assert factor[1200] == pytest.approx(0.5)
    assert min(factor[80:]) == factor[-1] == 0.02


def test_three_steps_write_a_folder_that_loads(tmp_path, capsys):
    out = tmp_path / "tiny"
    options = "--steps 3 --layers 2 --batch 2 --n-eval 3 --seed 7 --quiet"
    assert train.main(["--out", str(out), *options.split()]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in toy.TASKS)
    loaded, processor = model.load_folder(out)
    assert len(loaded.model.language_model.layers) == 2
    assert evaluate.accuracy(loaded, processor, "code", n=2) in (0, 0.5, 1)
    card = json.loads((out / "training.json").read_text())
    assert card["settings"]["seed"] == 7
    assert getattr(loaded.config, "vtfast_horizon", None) == evaluate.hardest_horizon(
        card["horizon"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "qwen"], "family='qwen' is not in this version; choose: llava"),
        (["--steps", "0"], "steps=0 but at least 1"),
        (["--seed", "-1"], "seed=-1 but"),
    ],
    ids=["family", "steps", "seed"],
)
def test_bad_training_options_end_with_one_line_and_code_2(tmp_path, capsys, options, message):
    assert train.main(["--out", str(tmp_path / "new"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_training_never_writes_into_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert train.main(["--out", str(tmp_path), "--steps", "1"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious"]
