"""Trainers that pack several samples into a row without padding (padding-free training)."""

import warnings

import pytest
import torch
from packed_samples import in_one_row, toy_scenes
from toy_scores import bundled
from transformers import Trainer, TrainingArguments

import vtfast


def questions(name):
    """A model and examples for it: what one sample brings, labelled on its last two tokens."""
    model, parts = toy_scenes(name, 4)
    for part in parts:
        part["labels"] = part["input_ids"].clone()
        part["labels"][:, :-2] = -100
    return model, parts


def packing(model):
    """A collator that packs its examples into one row, as TRL's and transformers' do for text."""

    def collate(parts):
        row = in_one_row([{k: v for k, v in part.items() if k != "labels"} for part in parts])
        row["labels"] = torch.cat([part["labels"] for part in parts], 1)
        return {**row, "use_cache": False}

    return collate


def arguments(cls, folder, **more):
    return cls(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=0.0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_strategy="no",
        bf16=False,
        seed=1,
        **more,
    )


def expected_loss(model, parts, plan):
    """The mean over the samples, each by itself; all have two labels."""
    with vtfast.patch(model, plan), torch.no_grad():
        return sum(model(**p, use_cache=False).loss.item() for p in parts) / len(parts)


@pytest.mark.parametrize("plan", ["divprune+random", "fastv"])
@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_transformers_trainer_runs_with_packed_rows(name, plan, tmp_path):
    model, parts = questions(name)
    expected = expected_loss(model, parts, plan)
    trainer = Trainer(
        model, arguments(TrainingArguments, tmp_path), packing(model), train_dataset=parts
    )
    with vtfast.patch(model, plan) as handle:
        loss = trainer.train().training_loss
        assert handle.report.path == "padded"
        assert len(handle.report.tokens) == 2
    model.eval()
    assert loss == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_trls_sft_trainer_runs_with_packed_rows(name, tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model, parts = questions(name)
    collate, rows = packing(model), {"input_ids": [[0]] * 4, "number": [0, 1, 2, 3]}
    numbers = datasets.table.InMemoryTable.from_pydict(rows)
    expected = expected_loss(model, parts, "fastv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        trainer = trl.SFTTrainer(
            model,
            arguments(trl.SFTConfig, tmp_path, dataset_kwargs={"skip_prepare_dataset": True}),
            data_collator=lambda rows: collate([parts[row["number"]] for row in rows]),
            train_dataset=datasets.Dataset(numbers, fingerprint="numbers"),
            processing_class=bundled(name)[1],
        )
        with vtfast.patch(model, "fastv"):
            loss = trainer.train().training_loss
    model.eval()
    assert loss == pytest.approx(expected, abs=1e-4)
