"""Training a toy model: the packed sequences, the step, the schedule, and the command."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from vtfast import toy
from vtfast.toy import evaluate, lessons, model, train
from vtfast.toy.family import PIXEL_MEAN, PIXEL_STD
from vtfast.toy.scene import Scene

ONE_STEP = ["--steps", "1", "--layers", "1", "--batch", "1", "--n-eval", "1", "--quiet"]


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name, one in model.FAMILIES.items() for size in one.SIZES],
    ids=str,
)
def test_a_packed_turn_is_seen_as_if_it_were_alone(name, size):
    """The reference is the stock model with what the processor makes of picture and prompt."""
    trainer = train.Trainer(train.Settings(name, layers=3, seed=3))
    family = model.FAMILIES[name]
    untrained, processor = family.build_model(layers=3, seed=3).eval(), family.build_processor()
    scene = Scene.from_seed(1, size)
    turns = [lessons.turn(scene, task) for task in lessons.TURNS]
    packed = lessons.draw_batch(np.random.default_rng(0), 1, size)
    pixels = torch.from_numpy(scene.pixels()).permute(2, 0, 1)[None].float() / 255
    row = dataclasses.replace(
        packed,
        pixels=(pixels - PIXEL_MEAN) / PIXEL_STD,
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


@pytest.mark.parametrize("family", model.FAMILIES.values(), ids=model.FAMILIES)
def test_the_seed_decides_the_first_weights(family):
    first = [family.build_model(layers=1, seed=seed).lm_head.weight for seed in (4, 4, 5)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("family", model.FAMILIES.values(), ids=model.FAMILIES)
def test_the_first_weights_and_masks_are_float32_under_any_default_dtype(family):
    size = family.SIZES[0]
    expected = [*family.build_model(1, 4).parameters(), *lessons.layout(family.positions(size))]
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = [*family.build_model(1, 4).parameters(), *lessons.layout(family.positions(size))]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_the_seed_decides_the_first_batch():
    first = []
    for seed in (4, 4, 5):
        source = lessons.batches(seed, 2)
        first.append(next(source).pixels)
        source.close()
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_batches_are_of_one_size_each_and_sizes_take_turns():
    source = lessons.batches(4, 2, sizes=((96, 96), (120, 108)))
    shapes = [tuple(next(source).pixels.shape) for _ in range(3)]
    source.close()
    assert shapes == [(2, 3, 96, 96), (2, 3, 108, 120), (2, 3, 96, 96)]


@pytest.mark.parametrize("name", model.FAMILIES)
def test_the_same_seed_gives_the_same_weights_after_a_step(name):
    def first_weights(seed):
        trainer = train.Trainer(train.Settings(name, layers=3, batch=2, seed=seed))
        source = lessons.batches(seed, 2)
        trainer.step(0, next(source))
        source.close()
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    assert torch.equal(first_weights(4), first_weights(4))


@pytest.mark.parametrize("name", model.FAMILIES)
def test_steps_on_one_batch_lower_its_loss(name):
    trainer = train.Trainer(train.Settings(name, layers=3, steps=10))
    batch = lessons.draw_batch(np.random.default_rng(0), 4)
    losses = [trainer.step(number, batch)["loss"] for number in range(10)]
    assert losses[-1] < losses[0] - 0.05


def test_the_learning_rate_warms_up_stays_and_falls_to_two_percent():
    factor = [train.learning_rate_factor(step, 1600) for step in range(1600)]
    assert factor[0] == 1 / 80
    assert factor[79] == factor[799] == 1
    assert factor[1200] == pytest.approx(0.5)
    assert min(factor[80:]) == factor[-1] == 0.02


@pytest.mark.parametrize("name", model.FAMILIES)
def test_three_steps_write_a_folder_that_loads(name, tmp_path, capsys):
    out = tmp_path / "tiny"
    options = "--steps 3 --layers 3 --batch 2 --n-eval 3 --seed 7 --quiet"
    assert train.main(["--out", str(out), "--family", name, *options.split()]) == 0
    shown = capsys.readouterr().out
    assert all(task in shown for task in toy.TASKS)
    loaded, processor = model.load_folder(out)
    assert len(loaded.model.language_model.layers) == 3
    assert evaluate.accuracy(loaded, processor, "code", n=2) in (0, 0.5, 1)
    card = json.loads((out / "training.json").read_text())
    assert card["settings"]["seed"] == 7
    assert getattr(loaded.config, "vtfast_horizon", None) == evaluate.hardest_horizon(
        card["horizon"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "gpt"], "there is no family='gpt'; choose: llava, qwen, qwen3"),
        (["--steps", "0"], "steps=0 but at least 1"),
        (["--family", "qwen3", "--layers", "2"], "layers=2 but at least 3"),
        (["--seed", "-1"], "seed=-1 but"),
    ],
    ids=["family", "steps", "layers", "seed"],
)
def test_bad_training_options_end_with_one_line_and_code_2(tmp_path, capsys, options, message):
    assert train.main(["--out", str(tmp_path / "new"), *ONE_STEP, *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_training_never_writes_into_a_folder_that_is_not_empty(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert train.main(["--out", str(tmp_path), *ONE_STEP]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious"]
