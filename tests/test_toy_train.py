"""Training a toy model: the packed rows, the step, the schedule, and the command."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch

from vtfast import toy
from vtfast.toy import evaluate, lessons, model, train
from vtfast.toy.scene import Scene

ONE_STEP = ["--steps", "1", "--layers", "1", "--batch", "1", "--n-eval", "1", "--quiet"]


@pytest.fixture(scope="module")
def untrained():
    return model.build_model(layers=2, seed=3).eval()


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


def test_the_seed_decides_the_first_weights():
    first = [model.build_model(layers=1, seed=seed).lm_head.weight for seed in (4, 4, 5)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_the_seed_decides_the_first_batch():
    first = []
    for seed in (4, 4, 5):
        source = lessons.batches(seed, 2)
        first.append(next(source).pixels)
        source.close()
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_the_same_seed_gives_the_same_weights_after_a_step():
    def first_weights(seed):
        trainer = train.Trainer(train.Settings(layers=1, batch=2, seed=seed))
        source = lessons.batches(seed, 2)
        trainer.step(0, next(source))
        source.close()
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    assert torch.equal(first_weights(4), first_weights(4))


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
    assert train.main(["--out", str(tmp_path / "new"), *ONE_STEP, *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_training_never_writes_into_a_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert train.main(["--out", str(tmp_path), *ONE_STEP]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious"]
